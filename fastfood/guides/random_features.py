"""Random features: FastfoodFeatures turn a kernel machine on digits into a linear model.

Kernel ridge regression solves a system of as many equations as there are rows of data. Features
phi(x) with phi(x) . phi(y) close to k(x, y) turn it into a linear ridge regression of D columns,
and by Fastfood they cost O(D log d) (Le, Sarlos, Smola, ICML 2013).

Expect the kernel's error to halve whenever D grows fourfold, and the accuracy to reach that of the
exact kernel, about 98 %, at some thousand features.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC

from fastfood import FastfoodFeatures

LENGTH_SCALE = 20.0  # in the unit of the data, grey values 0 ... 16
GAMMA = 1 / (2 * LENGTH_SCALE**2)  # scikit-learn's name for it
RIDGE = 1e-3


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--features", default="64,256,1024,4096", help="values of D, between commas"
    )
    parser.add_argument("--rows", type=int, default=1297, help="rows to train on, at most 1297")
    args = parser.parse_args(arguments)

    images, labels = load_digits(return_X_y=True)
    images = images.astype("float32")
    train, test = slice(0, args.rows), slice(1297, None)

    targets = torch.nn.functional.one_hot(torch.tensor(labels)).float().numpy() * 2 - 1
    exact = KernelRidge(alpha=RIDGE, kernel="rbf", gamma=GAMMA).fit(images[train], targets[train])
    accuracy = (exact.predict(images[test]).argmax(1) == labels[test]).mean()
    machine = SVC(gamma=GAMMA).fit(images[train], labels[train]).score(images[test], labels[test])
    print(f"exact kernel: ridge {accuracy:.3f}, support vectors {machine:.3f}")

    kernel = rbf_kernel(images[test], gamma=GAMMA)
    results = {}
    for D in map(int, args.features.split(",")):
        phi = FastfoodFeatures(d=64, D=D, kernel="rbf", length_scale=LENGTH_SCALE, seed=0)
        mapped = phi(torch.tensor(images)).numpy()
        error = abs(mapped[test] @ mapped[test].T - kernel).mean()
        linear = RidgeClassifier(alpha=RIDGE).fit(mapped[train], labels[train])
        results[D] = error, linear.score(mapped[test], labels[test])
        print(f"D = {D:5d}: mean error of the kernel {error:.4f}, accuracy {results[D][1]:.3f}")
    return results


if __name__ == "__main__":
    main()

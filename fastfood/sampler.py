"""`FastfoodFeatures` as a scikit-learn transformer, beside its RBFSampler. Needs scikit-learn."""

import torch
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .features import FastfoodFeatures

__all__ = ["FastfoodSampler"]


class FastfoodSampler(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Random features whose inner products approximate a kernel; see `fastfood.FastfoodFeatures`.

    Parameters:
        kernel: "rbf" or "matern".
        length_scale: of either kernel, above zero; scikit-learn's gamma is 1 / (2 length_scale^2).
        nu: the smoothness of "matern", a positive multiple of 1/2.
        n_components: features, at least 1.
        random_state: a seed, a numpy RandomState, or None for another map at every fit.

    Attributes:
        features_: the fitted `FastfoodFeatures`.
        n_features_in_: columns of the data it was fitted to.

    Raises ValueError naming the parameter that is off, at `fit`.
    """

    def __init__(
        self,
        kernel: str = "rbf",
        *,
        length_scale: float = 1.0,
        nu: float = 1.5,
        n_components: int = 100,
        random_state: int | RandomState | None = None,
    ) -> None:
        self.kernel = kernel
        self.length_scale = length_scale
        self.nu = nu
        self.n_components = n_components
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> "FastfoodSampler":
        """Draws the frequencies for the columns of X, (samples, columns); its values and y do not
        matter. Returns self. Raises ValueError naming the parameter that is off."""
        X = validate_data(self, X)
        seed = int(check_random_state(self.random_state).randint(1 << 31))
        self.features_ = FastfoodFeatures(
            X.shape[1], self.n_components, self.kernel, self.length_scale, self.nu, seed
        )
        self._n_features_out = self.n_components
        return self

    def transform(self, X: ArrayLike) -> NDArray:
        """X (samples, columns) to (samples, n_components); float32 stays, all else becomes float64.

        Raises NotFittedError before `fit`, ValueError for other columns than it had there.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=["float64", "float32"], reset=False)
        with torch.no_grad():
            return self.features_(torch.tensor(X)).numpy()

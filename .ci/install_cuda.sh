#!/bin/sh
# Installs the toolkit that a wheel is built with into /opt/cu12 or /opt/cu13 of a manylinux_2_28
# container: CUDA 13 from PyPI, CUDA 12 from NVIDIA's packages, because PyPI has only its ptxas.
set -eu
case ${CUDA_HOME:?wanted /opt/cu12 or /opt/cu13} in
/opt/cu12)
  case $(uname -m) in aarch64) arch=sbsa ;; *) arch=$(uname -m) ;; esac
  dnf install --assumeyes --quiet dnf-plugins-core
  dnf config-manager --add-repo \
    "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$arch/cuda-rhel8.repo"
  dnf install --assumeyes --quiet cuda-nvcc-12-9 cuda-cudart-devel-12-9
  ln -s /usr/local/cuda-12.9 /opt/cu12
  ;;
/opt/cu13)
  /opt/python/cp311-cp311/bin/python -m venv /opt/toolkit
  /opt/toolkit/bin/pip install --quiet --requirement "$1/.ci/cuda13.txt"
  ln -s /opt/toolkit/lib/python3.11/site-packages/nvidia/cu13 /opt/cu13
  ;;
*)
  echo "CUDA_HOME: wanted /opt/cu12 or /opt/cu13, got $CUDA_HOME" >&2
  exit 1
  ;;
esac
"$CUDA_HOME/bin/nvcc" --version

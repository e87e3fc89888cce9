#!/usr/bin/env bash
# What a GPU machine with PyTorch's usual stack (torch, transformers, peft, lightning, accelerate) and without network lacks, as
# wheels in .whl/, which git ignores. Run in the repository's root, with network.
#   bash benchmarks/gpu/carry.sh            all of it, about 47 MB
#   STRIP=1 bash benchmarks/gpu/carry.sh    of bitsandbytes the libraries for CPU and CUDA 13.0 alone: about 7 MB
# PYTHON_VERSION (3.12) and CUDA (130) are those of that machine.
set -euo pipefail
version=${PYTHON_VERSION:-3.12}
wheels=(
  bitsandbytes==0.50.2
  datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 xxhash
  jsonargparse==4.53.0 docstring-parser==0.18.0 typeshed-client==2.15.0
  torchmetrics jaxtyping wadler-lindig tenacity
)
fetch=(python3 -m pip download --quiet --no-deps --only-binary=:all: --dest .whl --implementation cp --python-version "$version")
for libc in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do
  fetch+=(--platform "${libc}_x86_64")
done
rm -rf .whl
mkdir .whl
for wheel in "${wheels[@]}"; do
  "${fetch[@]}" "$wheel"
done
if [ "${STRIP:-0}" = 1 ]; then
  python3 benchmarks/gpu/strip.py .whl/bitsandbytes-*.whl cpu "cuda${CUDA:-130}"
fi
du -ch .whl/*.whl | sort -h

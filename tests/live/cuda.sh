#!/usr/bin/env bash
# Checks that the feature `cuda` builds, on a machine without a GPU or a CUDA toolkit. It makes a toolkit of NVIDIA's Python
# packages (1.4 GB) and runs `cargo check --features cuda` with it. Everything is made below the folder named first
# (default: target/cuda) and kept for the next run. To build for a card: the same environment, `cargo build --release
# --features cuda`, and CUDA_COMPUTE_CAP as of the card (90: Hopper).
#
# With `--types` it checks the types alone, with a stand-in for the compiler of CUDA, and needs no package.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)

if [ "${1:-}" = --types ]; then
  toolkit=$(mktemp -d)
  trap 'rm -rf "$toolkit"' EXIT
  mkdir -p "$toolkit/bin" "$toolkit/include" "$toolkit/lib64"
  # Build scripts read the version from the fourth line, and look for the files that the compiler should have made.
  cat > "$toolkit/bin/nvcc" <<'STANDIN'
#!/usr/bin/env bash
case " $* " in *" --version "*) printf '%s\n' nvcc . . 'Cuda compilation tools, release 13.0, V13.0.88'; exit ;; esac
out= folder= before=
for word in "$@"; do
  case "$before" in -o) out=$word ;; --output-directory) folder=$word ;; esac
  case "$word" in *.cu) source=$(basename "${word%.cu}") ;; esac
  before=$word
done
if [ -n "$out" ]; then : > "$out"; fi
if [ -n "$folder" ]; then : > "$folder/$source.ptx"; fi
STANDIN
  chmod +x "$toolkit/bin/nvcc"
  export CUDA_HOME=$toolkit CUDA_PATH=$toolkit NVCC=$toolkit/bin/nvcc PATH=$toolkit/bin:$PATH CUDA_COMPUTE_CAP=90
  cargo check --workspace --manifest-path "$root/Cargo.toml" --features cuda
  exit
fi
mkdir -p "${1:-$root/target/cuda}"
work=$(cd "${1:-$root/target/cuda}" && pwd)

# 13.0: cudarc knows no newer toolkit than 13.4, and drivers of the 580 series load nothing newer than 13.0.
if [ ! -e "$work/.ready" ]; then
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' \
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cublas==13.0.*' \
    'nvidia-curand==10.4.0.*' 'nvidia-cuda-profiler-api==13.0.*'
  packages=$(echo "$work"/venv/lib/python3*/site-packages/nvidia/cu13)
  toolkit=$work/toolkit
  rm -rf "$toolkit"
  mkdir -p "$toolkit/lib64/stubs"
  ln -s "$packages/bin" "$packages/include" "$packages/nvvm" "$toolkit/"
  ln -s lib64 "$toolkit/lib"
  for library in "$packages"/lib/*.so* "$packages"/lib/*.a; do
    [ -e "$library" ] || continue
    ln -sf "$library" "$toolkit/lib64/"
    name=$(basename "$library")
    ln -sf "$library" "$toolkit/lib64/${name%%.so*}.so"
  done
  # The driver's library belongs to the driver; for linking, one that refuses everything will do.
  grep -oE '\bcu[A-Z][A-Za-z0-9_]+ *\(' "$packages/include/cuda.h" | tr -d ' (' | sort -u |
    sed 's/.*/int &(void) { return 100; }/' > "$work/stub.c"
  gcc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$toolkit/lib64/stubs/libcuda.so" "$work/stub.c"
  touch "$work/.ready"
fi
toolkit=$work/toolkit
export CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_TOOLKIT_ROOT_DIR=$toolkit NVCC=$toolkit/bin/nvcc PATH=$toolkit/bin:$PATH
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} LIBRARY_PATH=$toolkit/lib64:$toolkit/lib64/stubs CUDAFORGE_THREADS=1
"$NVCC" --version
cargo check --manifest-path "$root/Cargo.toml" --features cuda --target-dir "$work/target"

#!/usr/bin/env bash
# Installs the wheels into a fresh environment, unpacks an archive, and works with both binaries: packaging/check.sh dist
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
packages=$(cd "${1:-$here/dist}" && pwd)
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cd "$work"

# A small mixture, made and checked: the binary finds all that it needs.
use() {
  "$1" --version --verbose
  "$1" init "$here/recipes/quickstart/seed/config.json" --out seed
  "$1" branch seed --into code,law --out experts
  "$1" upcycle --method bam --seed seed --expert code=experts/code --expert law=experts/law --out bam
  "$1" validate bam --against
  "$1" run "$here/recipes/quickstart.yaml" --dry-run >plan
  "$1" --quiet man --out man1
  for shell in bash zsh fish; do "$1" completions "$shell" >"completions.$shell"; done
  bash -n completions.bash
}

python3 -m venv fresh
fresh/bin/pip install --quiet --disable-pip-version-check --no-index "$packages"/bam_convert-*.whl
mkdir wheel
(cd wheel && use "$work/fresh/bin/bam-convert")

# The plugin of vLLM, without vLLM: it is found under its entry point, and has its licences.
fresh/bin/pip install --quiet --disable-pip-version-check --no-index "$packages"/bam_vllm-*.whl
fresh/bin/python - <<'PYTHON'
from importlib.metadata import distribution, entry_points

[plugin] = entry_points(group="vllm.general_plugins")
assert callable(plugin.load())
files = {file.name for file in distribution("bam-vllm").files}
assert {"LICENSE-APACHE", "LICENSE-MIT", "heads.py", "model.py"} <= files, files
PYTHON

mkdir archive
tar --extract --gzip --file "$packages"/bam-convert-*.tar.gz --directory archive --strip-components 1
for name in LICENSE-APACHE LICENSE-MIT README.md man/man1/bam-convert-upcycle.1 completions/bash/bam-convert; do
  test -s "archive/$name" || { echo "the archive lacks $name" >&2; exit 1; }
done
cmp archive/bam-convert fresh/bin/bam-convert
echo "the wheels and the archive work"

#!/usr/bin/env bash
# Installs a wheel into a fresh environment, unpacks an archive, and works with both binaries: packaging/check.sh dist
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

mkdir archive
tar --extract --gzip --file "$packages"/bam-convert-*.tar.gz --directory archive --strip-components 1
for name in LICENSE-APACHE LICENSE-MIT README.md man/man1/bam-convert-upcycle.1 completions/bash/bam-convert; do
  test -s "archive/$name" || { echo "the archive lacks $name" >&2; exit 1; }
done
cmp archive/bam-convert fresh/bin/bam-convert
echo "the wheel and the archive work"

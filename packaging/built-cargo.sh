#!/usr/bin/env bash
# cargo for maturin where the program is built already: hands over the file $BINARY in place of a build. Tests of the packages
# take seconds with it (tests/live/wheel.sh).
set -euo pipefail
case "${1:-}" in
build | rustc) ;;
*) CARGO='' exec cargo "$@" ;;
esac
python3 - "$(cargo pkgid)" "$PWD/Cargo.toml" "$(realpath "$BINARY")" <<'PYTHON'
import json
import sys

package, manifest, binary = sys.argv[1:]
target = {
    "kind": ["bin"], "crate_types": ["bin"], "name": "bam-convert", "src_path": "src/main.rs", "edition": "2024",
    "doc": True, "doctest": False, "test": True,
}
profile = {"opt_level": "3", "debuginfo": 0, "debug_assertions": False, "overflow_checks": False, "test": False}
print(json.dumps({
    "reason": "compiler-artifact", "package_id": package, "manifest_path": manifest, "target": target, "profile": profile,
    "features": [], "filenames": [binary], "executable": binary, "fresh": True,
}))
print(json.dumps({"reason": "build-finished", "success": True}))
PYTHON

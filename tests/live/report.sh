#!/usr/bin/env bash
# Opens a page of `report` in headless Chromium, three widths wide, light and dark. Needs root and Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v chromium-headless-shell >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium-headless-shell fonts-dejavu-core
fi
BAM_CONVERT_BROWSER=$(command -v chromium-headless-shell) cargo test --test it report::browser::

"""Build the wheel and the archive of one platform, and the wheel of the vLLM plugin, into a folder. CONTRIBUTING.md says how to release.

    python3 packaging/build.py [--target TRIPLE] [--zig] [--out dist]

Needs Rust, a C compiler and maturin (`pip install maturin`; `maturin[zig]` for --zig), and pip for the plugin. The archive holds
the binary, licences, README, CHANGELOG, manual pages and completions. Equal inputs make equal archives and equal plugins.
"""

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["LICENSE-APACHE", "LICENSE-MIT", "README.md", "CHANGELOG.md"]
# Shells, and where each keeps the completions of a command.
COMPLETIONS = {
    "bash": "completions/bash/bam-convert",
    "zsh": "completions/zsh/_bam-convert",
    "fish": "completions/fish/bam-convert.fish",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", help="the platform's triple [default: this machine's]")
    parser.add_argument("--zig", action="store_true", help="link with zig, for Linux since glibc 2.17")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder to write to")
    parser.add_argument("--runnable", type=Path, help="a binary that runs here, where TRIPLE's does not")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.target or host()
    wheel = build_wheel(arguments)
    binary = unpacked(wheel)
    archive = arguments.out / f"bam-convert-{version()}-{target}.tar.gz"
    archive.write_bytes(packed(archive.name.removesuffix(".tar.gz"), files(binary, arguments.runnable)))
    for path in [wheel, archive, build_plugin(arguments.out)]:
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.name, sep="  ")


def version():
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]


def host():
    lines = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout.splitlines()
    return next(line.removeprefix("host: ") for line in lines if line.startswith("host: "))


def build_wheel(arguments):
    """The path of the wheel, which holds the only binary that is built."""
    before = set(arguments.out.glob("bam_convert-*.whl"))
    command = [sys.executable, "-m", "maturin", "build", "--release", "--locked", "--out", str(arguments.out)]
    if arguments.target:
        command += ["--target", arguments.target]
    if arguments.zig:
        command += ["--zig", "--compatibility", "manylinux2014"]
    subprocess.run(command, check=True, cwd=ROOT)
    made = set(arguments.out.glob("bam_convert-*.whl")) - before or before
    return max(made, key=lambda path: path.stat().st_mtime)


def build_plugin(out):
    """The path of the wheel of bam-vllm, which is the same on every platform."""
    source = ROOT / "packaging" / "bam-vllm"
    found = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
    if found != version():
        sys.exit(f"packaging/bam-vllm/pyproject.toml: version is {found}, expected that of Cargo.toml, {version()}")
    environment = {"SOURCE_DATE_EPOCH": "315532800", **os.environ}  # 1980, where the archives of wheels begin
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, env=environment)
    return out / f"bam_vllm-{found}-py3-none-any.whl"


def unpacked(wheel):
    """The binary in a wheel."""
    with zipfile.ZipFile(wheel) as contents:
        name = next(name for name in contents.namelist() if name.endswith(".data/scripts/bam-convert"))
        return contents.read(name)


def files(binary, runnable):
    """The files of an archive by path: their bytes, and whether they are programs."""
    found = {"bam-convert": (binary, True)}
    for name in TEXTS:
        found[name] = ((ROOT / name).read_bytes(), False)
    with tempfile.TemporaryDirectory() as work:
        program = runnable
        if program is None:
            program = Path(work) / "bam-convert"
            program.write_bytes(binary)
            program.chmod(0o755)
        pages = Path(work) / "man1"
        subprocess.run([program, "--quiet", "man", "--out", pages], check=True)
        for page in pages.iterdir():
            found[f"man/man1/{page.name}"] = (page.read_bytes(), False)
        for shell, path in COMPLETIONS.items():
            script = subprocess.run([program, "completions", shell], check=True, capture_output=True).stdout
            found[path] = (script, False)
    return found


def packed(folder, found):
    """A .tar.gz of files in one folder, whose bytes depend on nothing else."""
    # The date of the commit, if the build says it (reproducible-builds.org), for all files.
    date = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    archive = io.BytesIO()
    with gzip.GzipFile(fileobj=archive, mode="wb", mtime=date) as compressed:
        with tarfile.open(fileobj=compressed, mode="w") as tar:
            for path, (content, is_program) in sorted(found.items()):
                entry = tarfile.TarInfo(f"{folder}/{path}")
                entry.size = len(content)
                entry.mtime = date
                entry.mode = 0o755 if is_program else 0o644
                tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


main()

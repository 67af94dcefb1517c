#!/bin/bash
# The light part of edgeda on an aarch64 Python, emulated by qemu: are its answers those of this machine?
#
#     benchmarks/aarch64.sh WORK MODEL.onnx... [--image photo.jpg]      (of a network at 224 px: ten minutes)
#
# Needs Debian or Ubuntu on x86-64 with apt-get, Debian's keys (debian-archive-keyring), and a Python with pip, numpy, pillow
# and onnxruntime (PYTHON, default python3). Nothing is installed: qemu, Python and libraries of arm64 are unpacked into
# the folder WORK (about 250 MB) and kept there for the next time.
#
# For each model: probabilities of the image (or of eight pictures made here) here and there, largest difference at most
# TOLERANCE (1e-4; a quantized model 0.02, as its products are summed in another order), same class. Then the very zip file that
# `edgeda profile --device ssh://...` sends, run there. Prints what it found and ends with 1 where something differs.
# Times are those of an emulator and mean nothing.
set -euo pipefail

SUITE=${SUITE:-trixie}
# the archive that this machine's apt uses, without those of updates
MIRROR=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | grep -v security | sort -u | head -n 1)}
KEYRING=${KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}
PYTHON=${PYTHON:-python3}
TOLERANCE=${TOLERANCE:-1e-4}
WHEELS=${WHEELS:-numpy pillow onnxruntime}

die() { echo "error: $*" >&2; exit 2; }

here=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-}
[ -n "$work" ] || die "give a folder to work in: $0 WORK MODEL.onnx..."
shift
image=''
models=()
while [ $# -gt 0 ]; do
    case $1 in
        --image) image=$(realpath "${2:?--image needs a file}"); shift 2 ;;
        *) models+=("$(realpath "$1")"); shift ;;
    esac
done
[ ${#models[@]} -gt 0 ] || die "no model; export one with: edgeda export RUN --onnx"
for file in "${models[@]}" ${image:+"$image"}; do [ -f "$file" ] || die "no such file: $file"; done
[ -f "$KEYRING" ] || die "no keys of Debian at $KEYRING; install debian-archive-keyring"
mkdir -p "$work"
work=$(cd "$work" && pwd)
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}

# An apt of its own with no package installed: what it downloads is complete, and the machine's own stays as it is.
fetch() { # ARCHITECTURE PACKAGE...
    local apt=$work/apt/$1 arch=$1
    shift
    mkdir -p "$apt"/{lists/partial,cache/archives/partial,etc}
    : >"$apt/status"
    echo "deb [signed-by=$KEYRING] $MIRROR $SUITE main" >"$apt/etc/sources.list"
    local options=(
        -o APT::Architecture="$arch" -o APT::Architectures="$arch" -o APT::Sandbox::User=root
        -o Dir::State::Lists="$apt/lists" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache"
        -o Dir::Etc::SourceList="$apt/etc/sources.list" -o Dir::Etc::SourceParts=- -o Dir::Etc::PreferencesParts=-
        -o APT::Install-Recommends=false -o Debug::NoLocking=true
    )
    apt-get "${options[@]}" -qq update
    apt-get "${options[@]}" -qq --yes --download-only install "$@" >/dev/null
}

root=$work/root
qemu=$work/qemu/usr/bin/qemu-aarch64
if [ ! -x "$qemu" ]; then
    echo "fetching qemu of Debian $SUITE"
    fetch "$(dpkg --print-architecture)" qemu-user
    mkdir -p "$work/qemu"
    dpkg-deb --fsys-tarfile "$work/apt/$(dpkg --print-architecture)"/cache/archives/qemu-user_*.deb |
        tar -x -C "$work/qemu" ./usr/bin/qemu-aarch64
fi
if [ ! -e "$root/usr/bin/python3" ]; then
    echo "fetching an arm64 Python of Debian $SUITE"
    fetch arm64 base-files libc6 python3 libstdc++6 zlib1g
    mkdir -p "$root.part"
    for name in bin lib sbin; do mkdir -p "$root.part/usr/$name"; ln -sfn "usr/$name" "$root.part/$name"; done
    for package in "$work"/apt/arm64/cache/archives/*.deb; do dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root.part"; done
    mv "$root.part" "$root"
fi
rm -rf "$work/apt"

# Python is called by a name that can be started here too: it starts itself again to measure memory.
there=$work/python3
cat >"$there" <<WRAPPER
#!/bin/sh
exec '$qemu' -cpu cortex-a76 -L '$root' -0 '$there' -E PYTHONHOME=/usr '$root/usr/bin/python3' "\$@"
WRAPPER
chmod +x "$there"
version=$("$there" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
site=$work/site-$version
if [ ! -d "$site" ]; then
    echo "fetching wheels of aarch64 for Python $version: $WHEELS"
    platforms=(--platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64
        --platform manylinux2014_aarch64)
    # shellcheck disable=SC2086  # WHEELS is a list
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --target "$site.part" --python-version "$version" \
        --implementation cp --only-binary :all: "${platforms[@]}" $WHEELS
    mv "$site.part" "$site"
fi
sed -i "s|^exec|PYTHONPATH='$site'\${PYTHONPATH:+:\$PYTHONPATH} OMP_NUM_THREADS=1 exec|" "$there"

echo "there: $("$there" -c 'import platform, numpy, onnxruntime, PIL
print("Python", platform.python_version(), "on", platform.machine() + ", numpy", numpy.__version__ + ", onnxruntime",
      onnxruntime.__version__ + ", pillow", PIL.__version__)'); $("$qemu" --version | head -1)"

job=$work/job
rm -rf "$job"
mkdir -p "$job"
trap 'rm -rf "$job"' EXIT
"$PYTHON" - "$job" "$image" "${models[@]}" <<'PACK'
"""Write job.zip exactly as `edgeda profile --device` does, and pictures where none is given."""
import sys
from pathlib import Path

from edgeda.profiling import Extras
from edgeda.profiling.device import cargo, job_request, write_job

folder, image, models = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
(folder / "images").mkdir()
if image:
    (folder / "images" / Path(image).name).symlink_to(image)
else:
    import numpy as np
    from PIL import Image

    across, down = np.linspace(0, 9, 320)[None, :, None], np.linspace(0, 7, 240)[:, None, None]
    for number in range(8):
        pixels = 127 + 127 * np.sin(across * [1, 2, 3 + number] + down * number)
        image = folder / "images" / f"{number}.png"
        Image.fromarray(pixels.astype("uint8")).save(image)
loads = cargo(models)
extras = Extras(memory=True, end_to_end=True, image=Path(image))
request = job_request(loads, engines=["onnxruntime"], threads=1, budget_s=0.1, extras=extras)
write_job(folder / "job.zip", loads, request, Path(image))
PACK

cat >"$job/classify.py" <<'CLASSIFY'
"""Probabilities of every picture by each model, as JSON."""
import json
import sys
from pathlib import Path

from edgeda.runtime import Classifier

images, models = sorted(map(str, Path(sys.argv[1]).iterdir())), sys.argv[2:]
print(json.dumps([
    {"precision": classifier.manifest.precision, "classes": classifier.classes,
     "probabilities": [found.probabilities.tolist() for found in classifier(images)]}
    for classifier in (Classifier(model, "onnxruntime", threads=1) for model in models)
]))
CLASSIFY
"$PYTHON" "$job/classify.py" "$job/images" "${models[@]}" >"$job/here.json"
PYTHONPATH=$job/job.zip "$there" "$job/classify.py" "$job/images" "${models[@]}" >"$job/there.json"
"$there" "$job/job.zip" >"$job/profile.txt"

"$PYTHON" - "$job" "$TOLERANCE" "${models[@]}" <<'COMPARE'
"""Print the differences; exit code 1 where one is too large."""
import json
import sys
from pathlib import Path

folder, tolerance, models = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
here, there = (json.loads((folder / f"{name}.json").read_text()) for name in ("here", "there"))
failed = 0
for model, one, other in zip(models, here, there, strict=True):
    pairs = list(zip(one["probabilities"], other["probabilities"], strict=True))
    most = max(abs(a - b) for pair in pairs for a, b in zip(*pair, strict=True))
    agree = sum(a.index(max(a)) == b.index(max(b)) for a, b in pairs)
    allowed = max(tolerance, 0.02) if one["precision"] == "int8" else tolerance
    good = most <= allowed and agree == len(pairs)
    failed += not good
    print(f"{'ok' if good else 'DIFFERS'}: {model} ({one['precision']}): {agree} of {len(pairs)} pictures of the "
          f"same class, probabilities {most:.2g} apart (at most {allowed:g})")
answer = json.loads((folder / "profile.txt").read_text().splitlines()[-1])
if "rows" not in answer:
    sys.exit(f"DIFFERS: the job that ssh sends did not run there: {answer}")
for row in answer["rows"]:
    good = row["runs"] > 0 and row["finite"] and row["peak_memory_mb"] and row["stages"]
    failed += not good
    print(f"{'ok' if good else 'DIFFERS'}: profile of {row['model']}: {row['runs']} calls in {row['engine']} "
          f"{row['precision']}, {row['peak_memory_mb'] or 0:.0f} MB")
print(f"machine there: {answer['machine']['arch']}, {answer['machine'].get('cpu')}")
sys.exit(1 if failed else 0)
COMPARE

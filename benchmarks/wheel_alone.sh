#!/bin/sh
# The wheel alone classifies an image: README's three lines, copied as they stand, in a fresh environment with pip.
#
#     PYTHON=.venv/bin/python FRESH=python3.10 sh benchmarks/wheel_alone.sh MODEL.onnx [cpu|openvino]
#
# PYTHON needs hatchling and scikit-learn (whose photograph is the image). FRESH, by default the same, is whose version the
# fresh environment has; it gets the wheel with that one extra from the package index, and nothing else.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
model=$(realpath "$1")
extra=${2:-cpu}
python=${PYTHON:-$root/.venv/bin/python}
fresh=${FRESH:-$python}
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

(cd "$root" && "$python" -m hatchling build -t wheel -d "$work/dist" >/dev/null 2>&1)
"$python" - "$work/image.png" <<'END'
import sys
from PIL import Image
from sklearn.datasets import load_sample_image
Image.fromarray(load_sample_image("china.jpg")).save(sys.argv[1])
END
"$python" - "$root/README.md" > "$work/lines.py" <<'END'
import re, sys, textwrap
text = open(sys.argv[1], encoding="utf-8").read()
block = re.search(r"^    from edgeda\.runtime import Classifier\n(?:(?:    .*)?\n)*?(?=\n\S|[^ \n])", text, re.M)
print(textwrap.dedent(block.group()).strip())
END
cat "$work/lines.py"
count=$(grep -c . "$work/lines.py")
[ "$count" = 3 ] || { echo "README has $count lines, not three" >&2; exit 1; }
mkdir -p "$work/runs/demo/exports"
cp "$model" "$work/runs/demo/exports/student.onnx"

"$fresh" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q "$(echo "$work"/dist/*.whl)[$extra]"
"$work/venv/bin/python" -m pip list --format=freeze | tr '\n' ' '
echo
cd "$work"
"$work/venv/bin/python" lines.py
"$work/venv/bin/python" -c "
import sys; import edgeda; from edgeda.runtime import Classifier
assert edgeda.__file__.startswith('$work'), edgeda.__file__
print(Classifier('runs/demo/exports/student.onnx').backend.name, 'torch' in sys.modules)"
"$work/venv/bin/edgeda" predict runs/demo/exports/student.onnx --source image.png

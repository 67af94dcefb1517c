#!/bin/sh
# The main job on built-in real images: adapt, export, profile, compare, report. `make demo` runs it.
set -eu
run=runs/demo
start=$(date +%s)

say() { printf '\n$ %s\n' "$*" >&2; "$@"; }

if [ -f "$run/recipe.yaml" ] && [ ! -f "$run/summary.json" ]; then  # stopped before
    say edgeda adapt --out "$run" --resume
else
    say edgeda adapt --teacher r50 --student r18 --out "$run" --overwrite
fi
say edgeda export "$run" --onnx
say edgeda profile "$run" --seconds 0.5
say edgeda compare "$run"
say edgeda report "$run"

cat <<END

done in $(( $(date +%s) - start )) s. Now with your own images:
  . .venv/bin/activate
  edgeda adapt --teacher r50 --student r18 --source <class folders> --target <camera images>
END

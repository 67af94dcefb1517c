#!/bin/sh
# The main job on built-in real images: adapt, export, profile, compare, report. `make demo` runs it.
set -eu
run=runs/demo
start=$(date +%s)

say() { printf '\n$ %s\n' "$*" >&2; "$@"; }

say edgeda adapt --teacher r50 --student r18 --out "$run" --overwrite
say edgeda export "$run" --onnx
say edgeda profile "$run" --seconds 0.5
say edgeda compare "$run"
say edgeda report "$run"

cat <<END

done in $(( $(date +%s) - start )) s. Now with your own images:
  .venv/bin/edgeda adapt --teacher r50 --student r18 --source <class folders> --target <camera images>
END

#!/bin/sh
# Thirty generated frames through the primary classifier. Exit code 0: the engine was built and ran.
cd "$$(dirname "$$0")" || exit 1
exec gst-launch-1.0 -e nvstreammux name=mux batch-size=1 width=1280 height=720 ! \
  nvinfer config-file-path=config_infer_primary.txt ! fakesink \
  videotestsrc num-buffers=30 ! 'video/x-raw,width=1280,height=720' ! nvvideoconvert ! \
  'video/x-raw(memory:NVMM),format=NV12' ! mux.sink_0

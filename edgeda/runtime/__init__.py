"""What leaves the workshop: classify images with an exported model. numpy and Pillow, never torch."""

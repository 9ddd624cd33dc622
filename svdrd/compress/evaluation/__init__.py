"""What a codec costs and gives on a folder of images, and where such numbers come from."""

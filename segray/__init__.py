"""segray: image archives into segmentation labels, and labels into better models, on Ray."""

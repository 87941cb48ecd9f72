"""How `pointcloud.accelerate` folds: by containers before any call, by the flow of features within a call."""

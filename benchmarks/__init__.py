"""Side by side with the peers: `python -m benchmarks pointcloud`. Lives in the checkout, never installed."""

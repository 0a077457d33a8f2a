"""Jobs on Ray Tune: sources, workers, resources, retries and the live view."""

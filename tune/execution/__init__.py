"""Jobs on Ray Tune: workers, resources, retries and the live view."""

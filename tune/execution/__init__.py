"""Jobs on Ray Tune: searcher, scheduler, retries and callbacks."""

"""Run records: metrics files, events, progress, timing."""

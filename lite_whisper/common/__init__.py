"""What every floor uses: errors, processes, files that are never half-written, a journal, timing."""

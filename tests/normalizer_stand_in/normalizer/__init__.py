"""A stand-in for the folder `normalizer` of the Open ASR leaderboard: what its submissions call, for local folders."""

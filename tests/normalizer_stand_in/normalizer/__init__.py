"""A stand-in for the folder `normalizer` of the Open ASR leaderboard, which works on local datasets."""

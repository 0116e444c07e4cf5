"""Large amounts of audio in, text and subtitles out."""

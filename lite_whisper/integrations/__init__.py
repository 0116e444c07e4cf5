"""LiteWhisper in other programs; each module requires its program, so nothing is imported here."""

"""What a run leaves for people: its log, its pictures, the card of its model."""

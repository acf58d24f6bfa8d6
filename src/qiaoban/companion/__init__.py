"""The companion: one turn of talk in order, guard in front and guard behind. All that talks to a child goes through it."""

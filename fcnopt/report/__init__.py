"""Results for people: terminal table, JSON, HTML, overlay video."""

"""Loss against what it cost: frontiers, where they cross, and scaling laws."""

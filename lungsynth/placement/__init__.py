"""Where nodules go: assets, groups, rules, presence, planning, and the catalogue of recipes."""

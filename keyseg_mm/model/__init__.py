"""Public facts about a model, found by running it: points, sites, who reads a map, which layers carry one."""

"""The documentation site: what is made from the code, and where files outside ``docs/`` go."""

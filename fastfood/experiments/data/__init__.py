"""The data of a measurement: `rows` reads files and the hub, `tasks` makes labelled parts."""

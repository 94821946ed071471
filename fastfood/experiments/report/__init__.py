"""What a study shows, from its folder alone and at any time: `results` are its numbers as types,
`writer` gathers and writes them, `headline` and `findings` say them, `pages` are Markdown and HTML,
`figures` and `figure_curves` draw, and `display` holds the words that all of them share."""

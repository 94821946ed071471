"""What a study shows, from its folder alone and at any time: `writer` gathers and writes it,
`headline` and `findings` say it, `pages` are Markdown and HTML, `figures` and `figure_curves` draw,
and `display` holds the words and colours that all of them share."""

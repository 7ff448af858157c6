"""What the commands of the command line do, once `app.cli` has read their options. It may import the client and all of
`app` but `app.cli`; nothing here knows of typer.
"""

"""The studio's page and what only it asks for, over `serve`; no torch.

page       the page's files, sent as they lie in static/: no build, nothing from elsewhere
join       the page's own modules in one script
session    a browser that has the token gets its cookie
start      all that the page asks for at first, in one answer
drafts     what is written and not yet queued, kept with the folder
preview    what a wish comes to before it is made: canvas, panels, notes
tale       what a story comes to before it is made: its canvases
about      the machine, forms of settings, where a set comes from
examples   drawings of the embedded base to train on
toys       recipes and sets of the embedded base, for a folder that has none
studio     all of it together
"""

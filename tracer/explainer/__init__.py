"""From what a person hands over to what a person looks at: a model with its processor, asked in one call.

:class:`fxplain.Explainer` prepares inputs, traces the model when it is first asked, and gives an
:class:`fxplain.Explanation`, or an :class:`fxplain.Generated` for an answer of several tokens.
"""

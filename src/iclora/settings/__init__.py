"""Every setting once: its name, its range, its default, its help.

The command line's options, run files, the HTTP API and forms are made from these models, never
beside them: a new setting is one field. A field's docstring is its help. What else a door has to
know stands in the field's JSON schema:

    resume    what a resumed run may do with it: "free" to change, "differs" if the result is then
              no longer what it would have been unstopped; fixed where nothing is said
    decided   a request.json decides it, so it must not be given beside one
    option    its name as an option, where that is not the field's
    also      further names as an option
    position  given by its place on the command line, without a name
    many      of settings with several values: "list" if one option takes them all, else the
              option is repeated
    metavar   what stands for its value in help; by default its type says it
    example   a value to name where one is missing

A verb is such a model and a function that is told it: `@verb(CheckSettings)`.

`fields` holds types, ranges and what a field tells doors, `docstrings` reads its help; `training`,
`making`, `data`, `serving` and `measuring` hold the models; `reading` turns plain values into
settings. No torch is needed here.
"""

from iclora.settings.data import (
    CaptionSettings,
    CheckSettings,
    CollectSettings,
    ComposeSettings,
    ExportSettings,
    Grouping,
    ImportSettings,
    InfoSettings,
    Paging,
    PromptSettings,
    PushSettings,
    RecipesSettings,
    ReviewSettings,
)
from iclora.settings.docstrings import Described
from iclora.settings.fields import (
    MOST_PIXELS,
    PRECISIONS,
    RESOLUTIONS,
    Boost,
    Device,
    Dtype,
    Encoding,
    FilePath,
    Guidance,
    Machine,
    Mode,
    Offload,
    Panel,
    Precision,
    Prompt,
    Resample,
    Seed,
    Settings,
    Shown,
    Sigma,
    Steps,
    Strength,
    TextKind,
    about,
    split_strength,
)
from iclora.settings.findings import nearest, problems_of
from iclora.settings.foreign import foreign_words
from iclora.settings.making import (
    CompleteSettings,
    EvaluateSettings,
    ExtendSettings,
    GenerateSettings,
    MakeSettings,
    MakingMachine,
    RerollSettings,
    SampleSettings,
    Wish,
)
from iclora.settings.measuring import BenchSettings
from iclora.settings.reading import Verb, read_settings, settings_of, verb
from iclora.settings.serving import ServeSettings, StudioSettings
from iclora.settings.training import PlanSettings, RunSettings, TrainSettings

__all__ = [
    "MOST_PIXELS",
    "PRECISIONS",
    "RESOLUTIONS",
    "BenchSettings",
    "Boost",
    "CaptionSettings",
    "CheckSettings",
    "CollectSettings",
    "CompleteSettings",
    "ComposeSettings",
    "Described",
    "Device",
    "Dtype",
    "Encoding",
    "EvaluateSettings",
    "ExportSettings",
    "ExtendSettings",
    "FilePath",
    "GenerateSettings",
    "Grouping",
    "Guidance",
    "ImportSettings",
    "InfoSettings",
    "Machine",
    "MakeSettings",
    "MakingMachine",
    "Mode",
    "Offload",
    "Paging",
    "Panel",
    "PlanSettings",
    "Precision",
    "Prompt",
    "PromptSettings",
    "PushSettings",
    "RecipesSettings",
    "RerollSettings",
    "Resample",
    "ReviewSettings",
    "RunSettings",
    "SampleSettings",
    "Seed",
    "ServeSettings",
    "Settings",
    "Shown",
    "Sigma",
    "Steps",
    "Strength",
    "StudioSettings",
    "TextKind",
    "TrainSettings",
    "Verb",
    "Wish",
    "about",
    "foreign_words",
    "nearest",
    "problems_of",
    "read_settings",
    "settings_of",
    "split_strength",
    "verb",
]

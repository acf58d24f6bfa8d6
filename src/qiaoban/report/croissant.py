"""The set as Croissant 1.1 describes one (MLCommons, JSON-LD), with the fields of Croissant-RAI 1.0 for its making and limits.

Written by hand, since the library for it brings pandas and an RDF store; a test validates the result with that library and
reads the talks back through it.
"""

from __future__ import annotations

from typing import Any, Literal

from qiaoban.report.facts import Facts
from qiaoban.report.figures import Figures
from qiaoban.report.licences import licence_url
from qiaoban.report.plain import visible

DataType = Literal["sc:Text", "sc:Integer", "sc:Boolean"]
_FILE, _SET = "kept.jsonl", "talks"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_META = ("lang", "topic", "domain", "age_band", "emotion", "outcome", "risk", "relation")
_PROVENANCE = ("source", "teacher", "mode", "template_sha", "card_sha", "licence", "created_at")


def croissant(figures: Figures, facts: Facts) -> dict[str, Any]:
    """The document. Fields that nobody has given (`Facts.missing`) are left out."""
    talks = figures.talks
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": visible(facts.name),
        "description": {
            "en": f"{talks.talks} dialogues ({talks.turns} turns) of a child and an emotional companion, curated by rules.",
            "zh": f"孩子与情感陪伴助手的对话 {talks.talks} 段（{talks.turns} 句），经规则筛选。",
        },
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "license": licence_url(facts.licence),
        "inLanguage": list(facts.languages or sorted(talks.labels("lang"), reverse=True)),
        "keywords": ["children", "emotional support", "emotion coaching", "dialogue"],
    }
    if facts.creator:
        document["creator"] = {"@type": "sc:Organization", "name": visible(facts.creator)}
        document["citeAs"] = visible(". ".join(filter(None, [facts.creator, facts.name, facts.version, facts.url])))
    given = {"url": facts.url, "datePublished": facts.published, "version": facts.version}
    document |= {key: value for key, value in given.items() if value}
    document |= _responsible(figures)
    document["distribution"] = [
        {
            "@type": "cr:FileObject",
            "@id": _FILE,
            "name": _FILE,
            "contentUrl": _FILE,
            "contentSize": f"{figures.kept.size} B",
            "encodingFormat": "application/jsonlines",
            "sha256": figures.kept.sha256,
        }
    ]
    fields = _fields(with_split=talks.splits)
    document["recordSet"] = [
        {"@type": "cr:RecordSet", "@id": _SET, "name": _SET, "key": {"@id": f"{_SET}/id"}, "field": fields}
    ]
    return document


def _fields(*, with_split: bool) -> list[dict[str, Any]]:
    """The fields of a talk. A file has a column `split` only where some talk has been put into one."""
    turns = [_field("turns/acts", "sc:Text", "turns", repeated=True), _field("turns/emotion", "sc:Text", "turns")]
    turns.append(_field("turns/distress", "sc:Integer", "turns"))
    provenance = [_field(f"provenance/{name}", "sc:Text", "provenance") for name in _PROVENANCE]
    return [
        _field("id", "sc:Text", "id"),
        _group("messages", [_field(f"messages/{name}", "sc:Text", "messages") for name in ("role", "content")], repeated=True),
        _group("turns", turns, repeated=True),
        _group("meta", [_field(f"meta/{name}", "sc:Text", "meta") for name in _META]),
        _group("provenance", [*provenance, _field("provenance/synthetic", "sc:Boolean", "provenance")]),
        *([_field("split", "sc:Text", "split")] if with_split else []),
    ]


def _field(path: str, kind: DataType, column: str, *, repeated: bool = False) -> dict[str, Any]:
    source: dict[str, Any] = {"fileObject": {"@id": _FILE}, "extract": {"column": column}}
    name = path.rpartition("/")[2]
    if path != column:
        source["transform"] = {"jsonPath": name}
    field: dict[str, Any] = {"@type": "cr:Field", "@id": f"{_SET}/{path}", "name": name, "dataType": kind, "source": source}
    return field | ({"repeated": True} if repeated else {})


def _group(name: str, fields: list[dict[str, Any]], *, repeated: bool = False) -> dict[str, Any]:
    group = {"@type": "cr:Field", "@id": f"{_SET}/{name}", "name": name, "subField": fields}
    return group | ({"repeated": True} if repeated else {})


def _responsible(figures: Figures) -> dict[str, Any]:
    """Croissant-RAI: how the talks were made, what was done to them, what they are and are not for."""
    talks, safety = figures.talks, figures.safety
    origin = talks.origin
    risky = sum(row.talks for row in safety.risks if row.risk is not None)
    fields: dict[str, Any] = {
        "rai:dataCollection": (
            f"{origin['synthetic']} talks say that language models wrote them, {origin['people']} that people did, "
            f"{origin['unknown']} say nothing. Teachers, modes and sources stand in each talk's provenance."
        ),
        "rai:dataCollectionType": ["Others: synthetic dialogue" if origin["synthetic"] else "Others"],
        "rai:dataCollectionMissingData": "Labels that a talk does not have are left out of its record.",
        "rai:dataCollectionRawData": f"{figures.read} talks before curation; they are not part of this set.",
        "rai:dataPreprocessingProtocol": [_stage(stage.stage, stage.read, stage.kept) for stage in figures.stages],
        "rai:dataManipulationProtocol": _personal(figures),
        "rai:dataAnnotationProtocol": (
            f"{talks.acts.labelled} of {talks.acts.turns} companion turns carry acts of emotion coaching, as given by whoever "
            "wrote the talk or by a model; no agreement between annotators was measured."
        ),
        "rai:annotationsPerItem": "At most one label of each kind; none by several annotators.",
        "rai:machineAnnotationTools": sorted(figures.judged.by_judge) if figures.judged else ["rules of Qiaoban"],
        "rai:dataBiases": _biases(figures),
        "rai:dataLimitations": ["No count of nought means that the data are safe.", *(gap.text.en for gap in safety.gaps)],
        "rai:dataUseCases": [
            "Training and testing of companions that talk with children about feelings, behind a guard and with a grown-up.",
            "Not for diagnosis, therapy or emergencies, nor for a companion that poses as a person, a relative or a friend.",
            "Not as observations of real children.",
        ],
        "rai:dataSocialImpact": (
            f"Children may come to rely on a companion that learns from this; {risky} talks are labelled with a kind of risk. "
            "Help by people comes first."
        ),
        "rai:personalSensitiveInformation": [
            "The talks are about children of an age band, their feelings, families, health and schools.",
            _personal(figures),
        ],
        "rai:dataReleaseMaintenancePlan": "A talk is taken out by its id; the files are then written again with new digests.",
    }
    return fields | ({"rai:dataCollectionTimeframe": list(talks.days)} if talks.days else {})


def _stage(name: str, read: int, kept: int) -> str:
    return f"{name}: {read} talks read, {kept} kept."


def _personal(figures: Figures) -> str:
    found = figures.safety.personal
    if found is None:
        return "Personal data: not assessed."
    return (
        f"Personal data, by patterns and words: {found.dropped} talks left out, {found.redacted} kept with tags in its place."
    )


def _biases(figures: Figures) -> list[str]:
    talks = figures.talks
    told = [f"{name}: {_listed(talks.labels(name))}." for name in ("lang", "age_band", "domain", "risk")]
    return ["What a teacher model writes is not what children say.", *(visible(each) for each in told)]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing"

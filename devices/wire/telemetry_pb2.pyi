from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("version", "gateway", "epoch", "seq", "lane", "created_ns", "body_bytes", "body")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    BODY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    version: int
    gateway: str
    epoch: int
    seq: int
    lane: int
    created_ns: int
    body_bytes: int
    body: bytes
    def __init__(self, version: _Optional[int] = ..., gateway: _Optional[str] = ..., epoch: _Optional[int] = ..., seq: _Optional[int] = ..., lane: _Optional[int] = ..., created_ns: _Optional[int] = ..., body_bytes: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class Body(_message.Message):
    __slots__ = ("table", "summaries", "changes", "raw", "alarms", "inventory", "ledger", "heartbeat")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    SUMMARIES_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    table: Table
    summaries: Summaries
    changes: Changes
    raw: Raw
    alarms: Alarms
    inventory: Inventory
    ledger: Ledger
    heartbeat: Heartbeat
    def __init__(self, table: _Optional[_Union[Table, _Mapping]] = ..., summaries: _Optional[_Union[Summaries, _Mapping]] = ..., changes: _Optional[_Union[Changes, _Mapping]] = ..., raw: _Optional[_Union[Raw, _Mapping]] = ..., alarms: _Optional[_Union[Alarms, _Mapping]] = ..., inventory: _Optional[_Union[Inventory, _Mapping]] = ..., ledger: _Optional[_Union[Ledger, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Texts(_message.Message):
    __slots__ = ("utf8", "characters")
    UTF8_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    utf8: bytes
    characters: bytes
    def __init__(self, utf8: _Optional[bytes] = ..., characters: _Optional[bytes] = ...) -> None: ...

class Table(_message.Message):
    __slots__ = ("series", "devices", "shapes", "device", "channel", "quantity", "unit", "kind", "mapped", "text", "text_value", "series_device", "series_shape")
    SERIES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MAPPED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TEXT_VALUE_FIELD_NUMBER: _ClassVar[int]
    SERIES_DEVICE_FIELD_NUMBER: _ClassVar[int]
    SERIES_SHAPE_FIELD_NUMBER: _ClassVar[int]
    series: int
    devices: int
    shapes: int
    device: Texts
    channel: Texts
    quantity: Texts
    unit: Texts
    kind: bytes
    mapped: bytes
    text: Texts
    text_value: bytes
    series_device: bytes
    series_shape: bytes
    def __init__(self, series: _Optional[int] = ..., devices: _Optional[int] = ..., shapes: _Optional[int] = ..., device: _Optional[_Union[Texts, _Mapping]] = ..., channel: _Optional[_Union[Texts, _Mapping]] = ..., quantity: _Optional[_Union[Texts, _Mapping]] = ..., unit: _Optional[_Union[Texts, _Mapping]] = ..., kind: _Optional[bytes] = ..., mapped: _Optional[bytes] = ..., text: _Optional[_Union[Texts, _Mapping]] = ..., text_value: _Optional[bytes] = ..., series_device: _Optional[bytes] = ..., series_shape: _Optional[bytes] = ...) -> None: ...

class Times(_message.Message):
    __slots__ = ("unit", "first", "step", "rest")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REST_FIELD_NUMBER: _ClassVar[int]
    unit: bytes
    first: bytes
    step: bytes
    rest: bytes
    def __init__(self, unit: _Optional[bytes] = ..., first: _Optional[bytes] = ..., step: _Optional[bytes] = ..., rest: _Optional[bytes] = ...) -> None: ...

class Decimals(_message.Message):
    __slots__ = ("exponent", "first", "step", "float", "minus_zeros", "minus_zero")
    EXPONENT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FLOAT_FIELD_NUMBER: _ClassVar[int]
    MINUS_ZEROS_FIELD_NUMBER: _ClassVar[int]
    MINUS_ZERO_FIELD_NUMBER: _ClassVar[int]
    exponent: bytes
    first: bytes
    step: bytes
    float: bytes
    minus_zeros: int
    minus_zero: bytes
    def __init__(self, exponent: _Optional[bytes] = ..., first: _Optional[bytes] = ..., step: _Optional[bytes] = ..., float: _Optional[bytes] = ..., minus_zeros: _Optional[int] = ..., minus_zero: _Optional[bytes] = ...) -> None: ...

class Raw(_message.Message):
    __slots__ = ("rows", "series_rows", "time", "value", "quality")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SERIES_ROWS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    rows: int
    series_rows: bytes
    time: Times
    value: Decimals
    quality: bytes
    def __init__(self, rows: _Optional[int] = ..., series_rows: _Optional[bytes] = ..., time: _Optional[_Union[Times, _Mapping]] = ..., value: _Optional[_Union[Decimals, _Mapping]] = ..., quality: _Optional[bytes] = ...) -> None: ...

class Changes(_message.Message):
    __slots__ = ("rows", "series_rows", "time", "value")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SERIES_ROWS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    rows: int
    series_rows: bytes
    time: Times
    value: Decimals
    def __init__(self, rows: _Optional[int] = ..., series_rows: _Optional[bytes] = ..., time: _Optional[_Union[Times, _Mapping]] = ..., value: _Optional[_Union[Decimals, _Mapping]] = ...) -> None: ...

class Summaries(_message.Message):
    __slots__ = ("rows", "series_rows", "time", "supplement", "span_unit", "span", "count", "last", "below", "above", "first", "extreme_float", "mean_exponent", "mean", "mean_float", "stddev_exponent", "stddev", "stddev_float", "increase", "minus_zeros", "minus_zero")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SERIES_ROWS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SUPPLEMENT_FIELD_NUMBER: _ClassVar[int]
    SPAN_UNIT_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    EXTREME_FLOAT_FIELD_NUMBER: _ClassVar[int]
    MEAN_EXPONENT_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    MEAN_FLOAT_FIELD_NUMBER: _ClassVar[int]
    STDDEV_EXPONENT_FIELD_NUMBER: _ClassVar[int]
    STDDEV_FIELD_NUMBER: _ClassVar[int]
    STDDEV_FLOAT_FIELD_NUMBER: _ClassVar[int]
    INCREASE_FIELD_NUMBER: _ClassVar[int]
    MINUS_ZEROS_FIELD_NUMBER: _ClassVar[int]
    MINUS_ZERO_FIELD_NUMBER: _ClassVar[int]
    rows: int
    series_rows: bytes
    time: Times
    supplement: bytes
    span_unit: int
    span: bytes
    count: bytes
    last: Decimals
    below: bytes
    above: bytes
    first: bytes
    extreme_float: bytes
    mean_exponent: bytes
    mean: bytes
    mean_float: bytes
    stddev_exponent: bytes
    stddev: bytes
    stddev_float: bytes
    increase: Decimals
    minus_zeros: int
    minus_zero: bytes
    def __init__(self, rows: _Optional[int] = ..., series_rows: _Optional[bytes] = ..., time: _Optional[_Union[Times, _Mapping]] = ..., supplement: _Optional[bytes] = ..., span_unit: _Optional[int] = ..., span: _Optional[bytes] = ..., count: _Optional[bytes] = ..., last: _Optional[_Union[Decimals, _Mapping]] = ..., below: _Optional[bytes] = ..., above: _Optional[bytes] = ..., first: _Optional[bytes] = ..., extreme_float: _Optional[bytes] = ..., mean_exponent: _Optional[bytes] = ..., mean: _Optional[bytes] = ..., mean_float: _Optional[bytes] = ..., stddev_exponent: _Optional[bytes] = ..., stddev: _Optional[bytes] = ..., stddev_float: _Optional[bytes] = ..., increase: _Optional[_Union[Decimals, _Mapping]] = ..., minus_zeros: _Optional[int] = ..., minus_zero: _Optional[bytes] = ...) -> None: ...

class Alarms(_message.Message):
    __slots__ = ("rows", "id", "series", "detector", "open", "severity", "time_ns", "arrived_ns", "value", "low", "high", "score", "reason")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_NS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    rows: int
    id: Texts
    series: bytes
    detector: Texts
    open: bytes
    severity: Texts
    time_ns: bytes
    arrived_ns: bytes
    value: bytes
    low: bytes
    high: bytes
    score: bytes
    reason: Texts
    def __init__(self, rows: _Optional[int] = ..., id: _Optional[_Union[Texts, _Mapping]] = ..., series: _Optional[bytes] = ..., detector: _Optional[_Union[Texts, _Mapping]] = ..., open: _Optional[bytes] = ..., severity: _Optional[_Union[Texts, _Mapping]] = ..., time_ns: _Optional[bytes] = ..., arrived_ns: _Optional[bytes] = ..., value: _Optional[bytes] = ..., low: _Optional[bytes] = ..., high: _Optional[bytes] = ..., score: _Optional[bytes] = ..., reason: _Optional[_Union[Texts, _Mapping]] = ...) -> None: ...

class Inventory(_message.Message):
    __slots__ = ("software", "config_digest", "devices", "name", "profile", "channels", "channel")
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    software: str
    config_digest: str
    devices: int
    name: Texts
    profile: Texts
    channels: bytes
    channel: Texts
    def __init__(self, software: _Optional[str] = ..., config_digest: _Optional[str] = ..., devices: _Optional[int] = ..., name: _Optional[_Union[Texts, _Mapping]] = ..., profile: _Optional[_Union[Texts, _Mapping]] = ..., channels: _Optional[bytes] = ..., channel: _Optional[_Union[Texts, _Mapping]] = ...) -> None: ...

class Ledger(_message.Message):
    __slots__ = ("time_ns", "accounts", "device", "channel", "produced", "stored", "waiting", "late", "rejected", "dropped")
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    PRODUCED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    time_ns: int
    accounts: int
    device: Texts
    channel: Texts
    produced: bytes
    stored: bytes
    waiting: bytes
    late: bytes
    rejected: Counts
    dropped: Counts
    def __init__(self, time_ns: _Optional[int] = ..., accounts: _Optional[int] = ..., device: _Optional[_Union[Texts, _Mapping]] = ..., channel: _Optional[_Union[Texts, _Mapping]] = ..., produced: _Optional[bytes] = ..., stored: _Optional[bytes] = ..., waiting: _Optional[bytes] = ..., late: _Optional[bytes] = ..., rejected: _Optional[_Union[Counts, _Mapping]] = ..., dropped: _Optional[_Union[Counts, _Mapping]] = ...) -> None: ...

class Counts(_message.Message):
    __slots__ = ("rows", "account", "word", "count")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    rows: int
    account: bytes
    word: Texts
    count: bytes
    def __init__(self, rows: _Optional[int] = ..., account: _Optional[bytes] = ..., word: _Optional[_Union[Texts, _Mapping]] = ..., count: _Optional[bytes] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("time_ns", "software", "inventory_digest", "store_bytes", "store_limit_bytes", "outbox_frames", "oldest_unsent_ms", "open_alarms", "outage_budget_s")
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORE_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_FRAMES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_UNSENT_MS_FIELD_NUMBER: _ClassVar[int]
    OPEN_ALARMS_FIELD_NUMBER: _ClassVar[int]
    OUTAGE_BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    time_ns: int
    software: str
    inventory_digest: str
    store_bytes: int
    store_limit_bytes: int
    outbox_frames: int
    oldest_unsent_ms: int
    open_alarms: int
    outage_budget_s: float
    def __init__(self, time_ns: _Optional[int] = ..., software: _Optional[str] = ..., inventory_digest: _Optional[str] = ..., store_bytes: _Optional[int] = ..., store_limit_bytes: _Optional[int] = ..., outbox_frames: _Optional[int] = ..., oldest_unsent_ms: _Optional[int] = ..., open_alarms: _Optional[int] = ..., outage_budget_s: _Optional[float] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("version", "refused", "rows", "series", "reason", "count", "detail")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    version: int
    refused: str
    rows: int
    series: bytes
    reason: Texts
    count: bytes
    detail: Texts
    def __init__(self, version: _Optional[int] = ..., refused: _Optional[str] = ..., rows: _Optional[int] = ..., series: _Optional[bytes] = ..., reason: _Optional[_Union[Texts, _Mapping]] = ..., count: _Optional[bytes] = ..., detail: _Optional[_Union[Texts, _Mapping]] = ...) -> None: ...

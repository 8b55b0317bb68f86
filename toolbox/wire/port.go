package wire

// HeaderProxyProtocol (Extension), "http/1.1" or "h2c", says what the program
// behind /proxy/{port} speaks. Without it that is h2c for gRPC, and HTTP/1.1 for
// the rest.
const HeaderProxyProtocol = "X-Daytona-Proxy-Protocol"

// PortList is the answer of GET /port.
type PortList struct {
	Ports []int `json:"ports"`
}

// IsPortInUse is the answer of GET /port/{port}/in-use.
type IsPortInUse struct {
	IsInUse bool `json:"isInUse"`
}

// Extension: GET ListenersPath answers with a ListenerList.
const ListenersPath = "/port/listeners"

// Extension: GET PortEventsPath is a stream of server-sent events: first
// EventListeners with a ListenerList, then EventOpen and EventClose with a
// Listener each. The header Last-Event-ID, or the query parameter "since", with
// the id of an event asks for what came after it instead; EventListeners in
// place of that means that it is no longer known.
const PortEventsPath = "/port/events"

// Events of PortEventsPath.
const (
	EventListeners = "listeners"
	EventOpen      = "open"
	EventClose     = "close"
)

// ListenerList is who listens, sorted by port and address.
type ListenerList struct {
	Listeners []Listener `json:"listeners"`
}

// Listener is a listening TCP socket. PID, Process and Command are absent if
// they are not known.
type Listener struct {
	Port    int      `json:"port"`
	Address string   `json:"address"`
	UID     int      `json:"uid"`
	PID     int      `json:"pid,omitempty"`
	Process string   `json:"process,omitempty"`
	Command []string `json:"command,omitempty"`
}

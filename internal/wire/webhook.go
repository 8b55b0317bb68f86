package wire

// What follows is this server's own: the endpoints of webhooks, which the
// hosted service has on pages of its provider.

type WebhookEndpoint struct {
	ID          string `json:"id" required:"true"`
	URL         string `json:"url" required:"true"`
	Description string `json:"description" required:"true"`
	// Events are those that the endpoint is told of; none is all of them.
	Events         []string `json:"events" required:"true" enum:"sandbox.created,sandbox.state.updated,snapshot.created,snapshot.state.updated,snapshot.removed,volume.created,volume.state.updated"`
	Disabled       bool     `json:"disabled" required:"true"`
	DisabledReason *string  `json:"disabledReason" required:"true" nullable:"true"`
	// Secret is there in the answer to the request that makes the endpoint only.
	Secret    *string `json:"secret,omitempty"`
	CreatedAt string  `json:"createdAt" required:"true"`
	UpdatedAt string  `json:"updatedAt" required:"true"`
}

type CreateWebhookEndpoint struct {
	URL         string   `json:"url" required:"true"`
	Description *string  `json:"description,omitempty"`
	Events      []string `json:"events,omitempty"`
}

type UpdateWebhookEndpoint struct {
	URL         *string  `json:"url,omitempty"`
	Description *string  `json:"description,omitempty"`
	Events      []string `json:"events,omitempty"`
	Disabled    *bool    `json:"disabled,omitempty"`
}

type WebhookEndpointSecret struct {
	Secret string `json:"secret" required:"true"`
}

type WebhookMessage struct {
	ID        string         `json:"id" required:"true"`
	EventType string         `json:"eventType" required:"true"`
	Payload   map[string]any `json:"payload" required:"true"`
	CreatedAt string         `json:"createdAt" required:"true"`
}

// WebhookAttempt is one try to deliver a message.
type WebhookAttempt struct {
	ID         string `json:"id" required:"true"`
	MessageID  string `json:"msgId" required:"true"`
	EndpointID string `json:"endpointId" required:"true"`
	URL        string `json:"url" required:"true"`
	// ResponseStatusCode is 0 where there was no answer.
	ResponseStatusCode int     `json:"responseStatusCode" required:"true"`
	ResponseDurationMs int64   `json:"responseDurationMs" required:"true"`
	Error              *string `json:"error" required:"true" nullable:"true"`
	Timestamp          string  `json:"timestamp" required:"true"`
}

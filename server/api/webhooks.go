package api

import (
	"context"
	"encoding/json"

	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/organization"
	"github.com/daytona-go/daytona/server/webhook"
)

// RegisterWebhooks serves webhooks, for organizations and for administrators.
func RegisterWebhooks(a *API, s *webhook.Service, o *organization.Service) {
	type InEndpoint struct {
		OrganizationID string `path:"organizationId"`
		EndpointID     string `path:"endpointId"`
	}
	type InMessage struct {
		OrganizationID string `path:"organizationId"`
		MessageID      string `path:"messageId"`
	}
	status := func(v *webhook.Application, err error) (wire.WebhookInitializationStatus, error) {
		if err != nil {
			return wire.WebhookInitializationStatus{}, err
		}
		return wire.WebhookInitializationStatus{
			OrganizationID: v.OrganizationID, SvixApplicationID: &v.OrganizationID, CreatedAt: wire.Stamp(v.CreatedAt), UpdatedAt: wire.Stamp(v.UpdatedAt),
		}, nil
	}
	Handle(a, "WebhookController_getAppPortalAccess", func(ctx context.Context, in *inOrganization) (wire.WebhookAppPortalAccess, error) {
		// The page asks for a login of its own: there is no token to give.
		url, err := s.Portal(ctx, in.OrganizationID)
		return wire.WebhookAppPortalAccess{URL: url}, err
	})
	Handle(a, "WebhookController_getInitializationStatus", func(ctx context.Context, in *inOrganization) (wire.WebhookInitializationStatus, error) {
		return status(s.Application(ctx, in.OrganizationID))
	})
	Handle(a, "WebhookController_initializeWebhooks", func(ctx context.Context, in *inOrganization) (wire.WebhookInitializationStatus, error) {
		return status(s.Initialize(ctx, in.OrganizationID))
	})
	Handle(a, "WebhookController_refreshEndpoints", func(ctx context.Context, in *inOrganization) (None, error) {
		// Nothing is remembered that could be out of date.
		_, err := s.Application(ctx, in.OrganizationID)
		return None{}, err
	})

	Handle(a, "listWebhookEndpoints", func(ctx context.Context, in *inOrganization) ([]wire.WebhookEndpoint, error) {
		all, err := s.Endpoints(ctx, in.OrganizationID)
		if err != nil {
			return nil, err
		}
		return wireAll(all, func(e *webhook.Endpoint) (wire.WebhookEndpoint, error) { return endpointWire(e, ""), nil })
	})
	Handle(a, "createWebhookEndpoint", func(ctx context.Context, in *inOrganizationWith[wire.CreateWebhookEndpoint]) (wire.WebhookEndpoint, error) {
		e, secret, err := s.CreateEndpoint(ctx, in.OrganizationID, webhook.Change{URL: &in.Body.URL, Description: in.Body.Description, Events: in.Body.Events})
		if err != nil {
			return wire.WebhookEndpoint{}, err
		}
		Note(ctx, e.ID, map[string]any{"events": e.Events})
		return endpointWire(e, secret), nil
	})
	Handle(a, "updateWebhookEndpoint", func(ctx context.Context, in *struct {
		InEndpoint
		Body wire.UpdateWebhookEndpoint
	}) (wire.WebhookEndpoint, error) {
		b := in.Body
		e, err := s.UpdateEndpoint(ctx, in.OrganizationID, in.EndpointID, webhook.Change{URL: b.URL, Description: b.Description, Events: b.Events, Disabled: b.Disabled})
		if err != nil {
			return wire.WebhookEndpoint{}, err
		}
		return endpointWire(e, ""), nil
	})
	Handle(a, "deleteWebhookEndpoint", func(ctx context.Context, in *InEndpoint) (None, error) {
		return None{}, s.DeleteEndpoint(ctx, in.OrganizationID, in.EndpointID)
	})
	Handle(a, "getWebhookEndpointSecret", func(ctx context.Context, in *InEndpoint) (wire.WebhookEndpointSecret, error) {
		secret, err := s.Secret(ctx, in.OrganizationID, in.EndpointID)
		return wire.WebhookEndpointSecret{Secret: secret}, err
	})
	Handle(a, "listWebhookMessages", func(ctx context.Context, in *inOrganization) ([]wire.WebhookMessage, error) {
		all, err := s.Messages(ctx, in.OrganizationID)
		if err != nil {
			return nil, err
		}
		return wireAll(all, func(m *webhook.Message) (wire.WebhookMessage, error) {
			w := wire.WebhookMessage{ID: m.ID, EventType: m.Event, CreatedAt: wire.Stamp(m.CreatedAt)}
			return w, json.Unmarshal([]byte(m.Payload), &w.Payload)
		})
	})
	attempts := func(ctx context.Context, in *InMessage) ([]wire.WebhookAttempt, error) {
		all, err := s.Attempts(ctx, in.OrganizationID, in.MessageID)
		if err != nil {
			return nil, err
		}
		return wireAll(all, func(t *webhook.Attempt) (wire.WebhookAttempt, error) {
			return wire.WebhookAttempt{
				ID: t.ID, MessageID: t.MessageID, EndpointID: t.EndpointID, URL: t.URL, ResponseStatusCode: t.Status, ResponseDurationMs: t.Duration,
				Error: ptr(t.Error), Timestamp: wire.Stamp(t.CreatedAt),
			}, nil
		})
	}
	Handle(a, "listWebhookAttempts", attempts)

	Handle(a, "adminGetMessageAttempts", attempts)
	Handle(a, "adminSendWebhook", func(ctx context.Context, in *inOrganizationWith[wire.SendWebhook]) (None, error) {
		if _, err := s.Application(ctx, in.OrganizationID); err != nil {
			return None{}, err
		}
		id := ""
		if in.Body.EventID != nil {
			id = *in.Body.EventID
		}
		Note(ctx, in.OrganizationID, map[string]any{"eventType": in.Body.EventType})
		return None{}, s.Send(ctx, in.OrganizationID, in.Body.EventType, id, in.Body.Payload)
	})
	Handle(a, "adminGetWebhookStatus", func(ctx context.Context, _ *struct{}) (wire.AdminGetWebhookStatus200Response, error) {
		return wire.AdminGetWebhookStatus200Response{Enabled: new(s.Enabled())}, nil
	})
	Handle(a, "adminInitializeWebhooks", func(ctx context.Context, in *inOrganization) (None, error) {
		if _, err := o.Get(ctx, in.OrganizationID); err != nil {
			return None{}, err
		}
		_, err := s.Initialize(ctx, in.OrganizationID)
		return None{}, err
	})
}

func endpointWire(e *webhook.Endpoint, secret string) wire.WebhookEndpoint {
	return wire.WebhookEndpoint{
		ID: e.ID, URL: e.URL, Description: e.Description, Events: e.Events, Disabled: e.Disabled, DisabledReason: ptr(e.DisabledReason), Secret: ptr(secret),
		CreatedAt: wire.Stamp(e.CreatedAt), UpdatedAt: wire.Stamp(e.UpdatedAt),
	}
}

package organization

import (
	"context"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/daytona-go/daytona"
)

// Masked is what a header's value looks like to those who may not read it.
const Masked = "******"

// OTel is where telemetry of an organization's sandboxes goes.
type OTel struct {
	Endpoint string
	Headers  map[string]string
}

func otelPlace(organizationID, header string) string {
	return "organization/" + organizationID + "/otel/" + strings.ToLower(header)
}

// MaskedOTel returns the configuration without the values of headers; nil if
// there is none.
func (o *Organization) MaskedOTel() *OTel {
	if o.OTelEndpoint == "" {
		return nil
	}
	c := &OTel{Endpoint: o.OTelEndpoint, Headers: map[string]string{}}
	for k := range o.OTelHeaders {
		c.Headers[k] = Masked
	}
	return c
}

// OTel returns the configuration with the values of headers, for the
// collector.
func (s *Service) OTel(ctx context.Context, id string) (*OTel, error) {
	o, err := s.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if o.OTelEndpoint == "" {
		return nil, notFound("Organization OTEL config not found")
	}
	c := &OTel{Endpoint: o.OTelEndpoint, Headers: map[string]string{}}
	for k, v := range o.OTelHeaders {
		if c.Headers[k], err = s.config.Box.Open(v, otelPlace(id, k)); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// SetOTel replaces the configuration. A header whose value is nothing but
// asterisks keeps the value that it has: it is what was read, sent back.
func (s *Service) SetOTel(ctx context.Context, id string, c OTel) error {
	if s.config.Outbound == nil {
		return &daytona.Error{Kind: daytona.KindUnavailable, Message: "Telemetry is not configured on this server"}
	}
	if err := s.config.Outbound.Check("endpoint", c.Endpoint); err != nil {
		return err
	}
	if len(c.Headers) > maxHeaders {
		return invalid("headers must be at most %d", maxHeaders)
	}
	seen := map[string]bool{}
	for k, v := range c.Headers {
		if !httpguts.ValidHeaderFieldName(k) || len(k) > 256 {
			return invalid("headers must not have the name %q", k[:min(len(k), 64)])
		}
		if !httpguts.ValidHeaderFieldValue(v) || len(v) > maxHeaderValue {
			return invalid("the value of header %s is not one that a header can have", k)
		}
		if seen[strings.ToLower(k)] {
			return invalid("headers must have %s once", k)
		}
		seen[strings.ToLower(k)] = true
	}
	return s.change(ctx, id, func(o *Organization) error {
		sealed := map[string]string{}
		for k, v := range c.Headers {
			if v == "" || strings.Trim(v, "*") != "" {
				sealed[k] = s.config.Box.Seal(v, otelPlace(id, k))
				continue
			}
			old := ""
			for name, value := range o.OTelHeaders {
				if strings.EqualFold(name, k) {
					old = value
				}
			}
			if old == "" {
				return invalid("header %s has no value to keep: send one", k)
			}
			sealed[k] = old
		}
		o.OTelEndpoint, o.OTelHeaders = c.Endpoint, sealed
		return nil
	})
}

// DeleteOTel removes the configuration.
func (s *Service) DeleteOTel(ctx context.Context, id string) error {
	return s.change(ctx, id, func(o *Organization) error {
		o.OTelEndpoint, o.OTelHeaders = "", map[string]string{}
		return nil
	})
}

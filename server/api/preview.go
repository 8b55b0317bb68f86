package api

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/proxy"
)

// RegisterPreview serves what proxies of their own ask, one of a region about
// its sandboxes only.
func RegisterPreview(a *API, s proxy.Sandboxes) {
	type bySandbox struct {
		SandboxID string `path:"sandboxId"`
	}
	missing := func(id string) error {
		return &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox with ID or name " + id + " not found"}
	}
	// find finds a sandbox that the calling proxy may ask about.
	find := func(ctx context.Context, id string) (proxy.Sandbox, error) {
		sb, err := s.ProxySandbox(ctx, id)
		if errors.Is(err, daytona.ErrGone) || errors.Is(err, daytona.ErrNotFound) {
			return sb, missing(id)
		}
		if p := identity.From(ctx); err == nil && p.Kind == identity.RegionProxy && p.RegionID != sb.RegionID {
			return sb, missing(id)
		}
		return sb, err
	}
	denied := &daytona.Error{Kind: daytona.KindForbidden, Message: "Invalid or expired signed preview URL token"}
	signed := func(ctx context.Context, token string, port int) (proxy.Sandbox, error) {
		id, expires, err := s.SignedPreview(ctx, token, port)
		if err == nil && !time.Now().Before(expires) {
			err = denied
		}
		var sb proxy.Sandbox
		if err == nil {
			sb, err = find(ctx, id)
		}
		if errors.Is(err, daytona.ErrNotFound) || errors.Is(err, daytona.ErrForbidden) {
			err = denied
		}
		return sb, err
	}

	Handle(a, "isSandboxPublic", func(ctx context.Context, in *bySandbox) (Text, error) {
		sb, err := find(ctx, in.SandboxID)
		if err == nil && !sb.Public {
			err = missing(in.SandboxID)
		}
		return "true", err
	})
	Handle(a, "isPreviewWarningEnabled", func(ctx context.Context, in *struct {
		SandboxID string `path:"sandboxId"`
		Port      int    `query:"port" minimum:"0" maximum:"65535"`
	}) (wire.PreviewWarning, error) {
		sb, err := find(ctx, in.SandboxID)
		if errors.Is(err, daytona.ErrNotFound) && in.Port != 0 {
			sb, err = signed(ctx, in.SandboxID, in.Port)
		}
		return wire.PreviewWarning{Enabled: sb.Warning}, err
	})
	Handle(a, "isValidAuthToken", func(ctx context.Context, in *struct {
		SandboxID string `path:"sandboxId"`
		Token     string `path:"authToken"`
	}) (Text, error) {
		if _, err := find(ctx, in.SandboxID); err != nil {
			return "", err
		}
		ok, err := s.ValidPreviewToken(ctx, in.SandboxID, in.Token)
		if err == nil && !ok {
			err = missing(in.SandboxID)
		}
		return "true", err
	})
	Handle(a, "getSigningKey", func(ctx context.Context, in *bySandbox) (Text, error) {
		if _, err := find(ctx, in.SandboxID); err != nil {
			return "", err
		}
		key, err := s.SigningKey(ctx, in.SandboxID)
		return Text(key), err
	})
	Handle(a, "hasSandboxAccess", func(ctx context.Context, in *bySandbox) (Text, error) {
		sb, err := s.ProxySandbox(ctx, in.SandboxID)
		gone := errors.Is(err, daytona.ErrGone)
		if err != nil && !gone {
			if errors.Is(err, daytona.ErrNotFound) {
				err = missing(in.SandboxID)
			}
			return "", err
		}
		p := identity.From(ctx)
		switch {
		case sb.OrganizationID == "", p.Kind == identity.Key && p.OrganizationID != sb.OrganizationID:
			err = missing(in.SandboxID)
		case p.Kind == identity.JWT:
			if _, err = a.config.Authenticator.Join(ctx, p, sb.OrganizationID); errors.Is(err, daytona.ErrForbidden) || errors.Is(err, daytona.ErrNotFound) {
				err = missing(in.SandboxID)
			}
		default:
			err = nil
		}
		if err == nil && gone {
			err = &codedError{"SANDBOX_DESTROYED", missing(in.SandboxID)}
		}
		return "true", err
	})
	Handle(a, "getSandboxIdFromSignedPreviewUrlToken", func(ctx context.Context, in *struct {
		Token string `path:"signedPreviewToken"`
		Port  string `path:"port"`
	}) (Text, error) {
		port, err := strconv.Atoi(in.Port)
		if err != nil || port < 1 || port > 65535 {
			return "", &daytona.Error{Kind: daytona.KindInvalid, Message: "Invalid port"}
		}
		sb, err := signed(ctx, in.Token, port)
		return Text(sb.ID), err
	})
}

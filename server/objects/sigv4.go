package objects

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Grant is what a credential may do.
type Grant struct {
	OrganizationID string
	Bucket         string
	// Prefix begins every key; "" allows the whole bucket.
	Prefix string
	// Delete allows to remove objects.
	Delete bool
	// Secret is what its holder signs with, Token the session's that they send.
	Secret    string
	TokenHash string // SHA-256 in hex; "" if there is no token
	Expires   time.Time
}

// Grants finds a credential by its access key; nil if there is none.
type Grants func(ctx context.Context, accessKey string) (*Grant, error)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	timeFormat = "20060102T150405Z"
	// maxSkew is how far a client's clock may be off.
	maxSkew = 15 * time.Minute
	// maxPresigned is the longest that a signed URL may be good for.
	maxPresigned = 7 * 24 * time.Hour

	unsigned               = "UNSIGNED-PAYLOAD"
	streaming              = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	streamingTrailer       = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	streamingUnsignTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// signed is a request whose signature is right.
type signed struct {
	grant *Grant
	// payload is the header X-Amz-Content-Sha256.
	payload string
	// For the signatures of chunks.
	key                    []byte
	date, scope, signature string
}

// Claims reports whether a request is one of S3's: it is signed as S3's are.
// Such a request may be told from all others at any path.
func Claims(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("Authorization"), algorithm+" ") || strings.Contains(r.URL.RawQuery, "X-Amz-Algorithm=")
}

// authenticate checks the signature of a request, version 4 of AWS's, in the
// header or in the query.
func authenticate(r *http.Request, grants Grants, now time.Time) (*signed, *apiError) {
	query := r.URL.Query()
	presigned := query.Has("X-Amz-Algorithm")
	var credential, signedHeaders, signature, date, token string
	switch authorization := r.Header.Get("Authorization"); {
	case presigned && authorization != "":
		return nil, errf("InvalidArgument", "Only one auth mechanism allowed")
	case presigned:
		if query.Get("X-Amz-Algorithm") != algorithm {
			return nil, errf("AuthorizationQueryParametersError", "X-Amz-Algorithm only supports "+algorithm)
		}
		credential, signedHeaders, signature = query.Get("X-Amz-Credential"), query.Get("X-Amz-SignedHeaders"), query.Get("X-Amz-Signature")
		date, token = query.Get("X-Amz-Date"), query.Get("X-Amz-Security-Token")
	case authorization == "":
		return nil, errf("AccessDenied", "Anonymous access is not allowed")
	default:
		rest, ok := strings.CutPrefix(authorization, algorithm+" ")
		if !ok {
			return nil, errf("InvalidRequest", "The authorization mechanism is not supported; use "+algorithm)
		}
		for part := range strings.SplitSeq(rest, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			switch name {
			case "Credential":
				credential = value
			case "SignedHeaders":
				signedHeaders = value
			case "Signature":
				signature = value
			}
		}
		if date = r.Header.Get("X-Amz-Date"); date == "" {
			if t, err := http.ParseTime(r.Header.Get("Date")); err == nil {
				date = t.UTC().Format(timeFormat)
			}
		}
		token = r.Header.Get("X-Amz-Security-Token")
	}
	malformed := errf("AuthorizationHeaderMalformed", "The authorization is malformed")
	// The access key may not have a slash in it, but that is for its maker.
	parts := strings.Split(credential, "/")
	if len(parts) != 5 || parts[3] != "s3" || parts[4] != "aws4_request" || len(parts[0]) > 128 || len(signature) != 64 || signedHeaders == "" {
		return nil, malformed
	}
	at, err := time.Parse(timeFormat, date)
	if err != nil || parts[1] != date[:8] {
		return nil, malformed
	}
	if presigned {
		seconds, err := strconv.ParseInt(query.Get("X-Amz-Expires"), 10, 64)
		if err != nil || seconds < 1 || seconds > int64(maxPresigned/time.Second) {
			return nil, errf("AuthorizationQueryParametersError", "X-Amz-Expires must be from 1 to 604800 seconds")
		}
		if at.After(now.Add(maxSkew)) {
			return nil, errf("AccessDenied", "Request is not valid yet")
		}
		if now.After(at.Add(time.Duration(seconds) * time.Second)) {
			return nil, errf("AccessDenied", "Request has expired")
		}
	} else if d := now.Sub(at); d > maxSkew || d < -maxSkew {
		return nil, errf("RequestTimeTooSkewed", "The difference between the request time and the server's time is too large")
	}
	g, err := grants(r.Context(), parts[0])
	if err != nil {
		return nil, &apiError{Code: "InternalError", Message: "We encountered an internal error. Please try again.", cause: err}
	}
	if g == nil {
		return nil, errf("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records")
	}
	names := strings.Split(signedHeaders, ";")
	if !slices.Contains(names, "host") {
		return nil, malformed
	}
	for name := range r.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-amz-") && !slices.Contains(names, lower) {
			// What a client has not signed, somebody on the way may have added.
			if presigned && lower == "x-amz-content-sha256" {
				continue
			}
			return nil, errf("AccessDenied", "There were headers present in the request which were not signed: "+lower)
		}
	}
	payload := r.Header.Get("X-Amz-Content-Sha256")
	switch {
	case payload == "" && presigned:
		payload = unsigned
	case payload == "":
		return nil, errf("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
	}
	inCanonical := payload
	if presigned && !slices.Contains(names, "x-amz-content-sha256") {
		inCanonical = unsigned
	}
	var headers strings.Builder
	for _, name := range names {
		headers.WriteString(name + ":" + headerValue(r, name) + "\n")
	}
	canonical := r.Method + "\n" + escape(r.URL.Path, true) + "\n" + canonicalQuery(query) + "\n" + headers.String() + "\n" + signedHeaders + "\n" + inCanonical
	sum := sha256.Sum256([]byte(canonical))
	scope := strings.Join(parts[1:], "/")
	key := signingKey(g.Secret, parts[1], parts[2])
	want := sign(key, algorithm+"\n"+date+"\n"+scope+"\n"+hex.EncodeToString(sum[:]))
	if subtle.ConstantTimeCompare([]byte(want), []byte(signature)) != 1 {
		return nil, errf("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method.")
	}
	// Only to who has signed, so that nobody learns which keys there are of what.
	if g.TokenHash != "" || token != "" {
		sum := sha256.Sum256([]byte(token))
		if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(g.TokenHash)) != 1 {
			return nil, errf("InvalidToken", "The provided token is malformed or otherwise invalid.")
		}
	}
	if !g.Expires.IsZero() && !now.Before(g.Expires) {
		return nil, errf("ExpiredToken", "The provided token has expired.")
	}
	return &signed{grant: g, payload: payload, key: key, date: date, scope: scope, signature: signature}, nil
}

func headerValue(r *http.Request, name string) string {
	switch name {
	case "host":
		return r.Host
	case "content-length":
		return strconv.FormatInt(r.ContentLength, 10)
	case "transfer-encoding":
		return strings.Join(r.TransferEncoding, ",")
	}
	values := r.Header.Values(name)
	clean := make([]string, len(values))
	for i, v := range values {
		clean[i] = strings.Join(strings.Fields(v), " ")
	}
	return strings.Join(clean, ",")
}

func canonicalQuery(q url.Values) string {
	var pairs []string
	for k, values := range q {
		if k == "X-Amz-Signature" {
			continue
		}
		for _, v := range values {
			pairs = append(pairs, escape(k, false)+"="+escape(v, false))
		}
	}
	// By name, then by value: "=" sorts after what may be in a name otherwise.
	slices.SortFunc(pairs, func(a, b string) int {
		ka, va, _ := strings.Cut(a, "=")
		kb, vb, _ := strings.Cut(b, "=")
		if c := strings.Compare(ka, kb); c != 0 {
			return c
		}
		return strings.Compare(va, vb)
	})
	return strings.Join(pairs, "&")
}

// escape writes text as AWS does in what is signed.
func escape(text string, slash bool) string {
	var b strings.Builder
	b.Grow(len(text))
	for i := range len(text) {
		c := text[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == '~', slash && c == '/':
			b.WriteByte(c)
		default:
			const digits = "0123456789ABCDEF"
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
	return b.String()
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func sign(key []byte, text string) string { return hex.EncodeToString(mac(key, text)) }

func signingKey(secret, day, region string) []byte {
	return mac(mac(mac(mac([]byte("AWS4"+secret), day), region), "s3"), "aws4_request")
}

// presign returns a URL that reads an object for a time, without a credential.
func presign(base *url.URL, path string, accessKey, secret, region string, at time.Time, valid time.Duration) string {
	date := at.UTC().Format(timeFormat)
	scope := date[:8] + "/" + region + "/s3/aws4_request"
	q := url.Values{
		"X-Amz-Algorithm": {algorithm}, "X-Amz-Credential": {accessKey + "/" + scope}, "X-Amz-Date": {date},
		"X-Amz-Expires": {strconv.Itoa(int(valid / time.Second))}, "X-Amz-SignedHeaders": {"host"},
	}
	query := canonicalQuery(q)
	full := strings.TrimSuffix(base.Path, "/") + path
	canonical := "GET\n" + escape(full, true) + "\n" + query + "\nhost:" + base.Host + "\n\nhost\n" + unsigned
	sum := sha256.Sum256([]byte(canonical))
	signature := sign(signingKey(secret, date[:8], region), algorithm+"\n"+date+"\n"+scope+"\n"+hex.EncodeToString(sum[:]))
	return base.Scheme + "://" + base.Host + escape(full, true) + "?" + query + "&X-Amz-Signature=" + signature
}

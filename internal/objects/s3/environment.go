package s3

import (
	"cmp"
	"context"
	"net/url"
	"os"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/objects"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// OpenURL makes a Store of what [ParseURL] reads, with the credentials of this
// process's environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
// AWS_SESSION_TOKEN, or else the profile AWS_PROFILE of ~/.aws/config and
// ~/.aws/credentials. They are read once. What the URL does not say of endpoint
// and region is that of AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and AWS_REGION
// or AWS_DEFAULT_REGION. No credentials give KindUnauthorized.
func OpenURL(_ context.Context, raw string) (objects.Store, error) {
	if u, err := url.Parse(raw); err == nil {
		q := u.Query()
		for name, value := range map[string]string{
			"endpoint": cmp.Or(os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL")),
			"region":   cmp.Or(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")),
		} {
			if value != "" && !q.Has(name) {
				q.Set(name, value)
			}
		}
		u.RawQuery = q.Encode()
		raw = u.String()
	}
	l, err := ParseURL(raw)
	if err != nil {
		return nil, err
	}
	v, err := credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}).GetWithContext(nil)
	if err != nil || v.AccessKeyID == "" || v.SecretAccessKey == "" {
		// The reason is not shown: it is made of what is in those files.
		return nil, &daytona.Error{Kind: daytona.KindUnauthorized, Op: openOp, Subject: "s3://" + l.Bucket,
			Message: "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of ~/.aws/credentials that has both"}
	}
	l.AccessKey, l.SecretKey, l.SessionToken = v.AccessKeyID, v.SecretAccessKey, v.SessionToken
	return Open(l, nil)
}

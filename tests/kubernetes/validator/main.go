// Command validator says what KubeRay's own rules make of manifests: it reads a JSON array of RayJobs, RayServices and
// RayClusters and writes an array of verdicts, empty where a manifest passes.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	rayv1 "github.com/ray-project/kuberay/ray-operator/apis/ray/v1"
	"github.com/ray-project/kuberay/ray-operator/controllers/ray/utils"
	"github.com/ray-project/kuberay/ray-operator/pkg/features"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"sigs.k8s.io/yaml"
)

func verdict(text []byte) error {
	var meta metav1.TypeMeta
	if err := json.Unmarshal(text, &meta); err != nil {
		return err
	}
	switch meta.Kind {
	case "RayJob":
		var job rayv1.RayJob
		if err := yaml.UnmarshalStrict(text, &job); err != nil {
			return err
		}
		made := rayv1.RayCluster{}
		if job.Spec.RayClusterSpec != nil {
			made = owned(*job.Spec.RayClusterSpec, utils.RayJobCRD)
		}
		return errors.Join(utils.ValidateRayJobMetadata(job.ObjectMeta), utils.ValidateRayJobSpec(&job),
			utils.ValidateRayClusterUpgradeOptions(&made))
	case "RayService":
		var service rayv1.RayService
		if err := yaml.UnmarshalStrict(text, &service); err != nil {
			return err
		}
		// The resource definition has this default.
		if upgrade := service.Spec.UpgradeStrategy; upgrade != nil && upgrade.ClusterUpgradeOptions != nil {
			if surge := int32(100); upgrade.ClusterUpgradeOptions.MaxSurgePercent == nil {
				upgrade.ClusterUpgradeOptions.MaxSurgePercent = &surge
			}
		}
		made := owned(service.Spec.RayClusterSpec, utils.RayServiceCRD)
		return errors.Join(utils.ValidateRayServiceMetadata(service.ObjectMeta), utils.ValidateRayServiceSpec(&service),
			utils.ValidateRayClusterUpgradeOptions(&made))
	case "RayCluster":
		var cluster rayv1.RayCluster
		if err := yaml.UnmarshalStrict(text, &cluster); err != nil {
			return err
		}
		return errors.Join(utils.ValidateRayClusterMetadata(cluster.ObjectMeta),
			utils.ValidateRayClusterSpec(&cluster.Spec, cluster.Annotations), utils.ValidateRayClusterUpgradeOptions(&cluster))
	case "RayCronJob":
		var nightly rayv1.RayCronJob
		if err := yaml.UnmarshalStrict(text, &nightly); err != nil {
			return err
		}
		return utils.ValidateRayCronJobSpec(&nightly)
	}
	return fmt.Errorf("KubeRay has no kind %q", meta.Kind)
}

func owned(spec rayv1.RayClusterSpec, by utils.CRDType) rayv1.RayCluster {
	labels := map[string]string{utils.RayOriginatedFromCRDLabelKey: string(by)}
	return rayv1.RayCluster{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec}
}

// guarded says what a rule that ends in a panic says: the operator's own would end too.
func guarded(text []byte) (said string) {
	defer func() {
		if cause := recover(); cause != nil {
			said = fmt.Sprintf("the operator panics: %v", cause)
		}
	}()
	if err := verdict(text); err != nil {
		return err.Error()
	}
	return ""
}

func main() {
	// On by default since KubeRay 1.7.
	gate := map[string]bool{string(features.RayServiceIncrementalUpgrade): true}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(gate); err != nil {
		panic(err)
	}
	var manifests []json.RawMessage
	if err := json.NewDecoder(os.Stdin).Decode(&manifests); err != nil {
		panic(err)
	}
	said := make([]string, len(manifests))
	for number, text := range manifests {
		said[number] = guarded(text)
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		panic(err)
	}
}

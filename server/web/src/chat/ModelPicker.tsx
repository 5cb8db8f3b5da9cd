import { tried } from './chat';
import type { Provider } from './documents';
import { choose, label, loadModels, model, providers } from './models';

export function ModelPicker() {
  return (
    <label class="picker">
      <span>Model</span>
      <select
        value={model.value}
        onFocus={() => void tried(loadModels())}
        onChange={(event) => choose(event.currentTarget.value)}
      >
        {providers.value.map((provider) => (
          <optgroup key={provider.name} label={provider.name}>
            {provider.models.map((each) => (
              <option key={each.name} value={each.name} selected={each.name === model.value}>
                {label(each)}
              </option>
            ))}
            {provider.models.length === 0 && <option disabled>{why(provider)}</option>}
          </optgroup>
        ))}
      </select>
    </label>
  );
}

function why({ configured, health }: Provider): string {
  if (!configured) return 'not configured';
  return health.status === 'DOWN' ? (health.lastError ?? 'does not answer') : 'no models';
}

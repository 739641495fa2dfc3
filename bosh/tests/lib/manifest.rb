# frozen_string_literal: true

require_relative 'go_patch'
require_relative 'release'
require_relative 'variables'

# A deployment manifest as the director reads it: variables, links, and the rendered jobs of
# release portcullis.
class Manifest
  class LinkError < StandardError; end

  Provider = Struct.new(:name, :type, :group, :job, :properties)

  OPS = "#{Release::ROOT}/ops"
  FIXTURES = "#{Release::FIXTURES}/cf-deployment"
  # What an operator passes to `bosh deploy`.
  GIVEN = { 'system_domain' => 'example.com' }.freeze

  # cf-deployment with operations files: names of bosh/ops, or of cf-deployment's own files
  # as `cf-deployment/NAME`.
  def self.with(*files)
    files.reduce(new(YAML.safe_load_file("#{Release::FIXTURES}/cf-deployment.yml"))) do |manifest, file|
      directory, name = file.start_with?('cf-deployment/') ? [FIXTURES, File.basename(file)] : [OPS, file]
      manifest.apply(YAML.safe_load_file("#{directory}/#{name}.yml", aliases: true))
    end
  end

  attr_reader :document

  def initialize(document, variables = nil)
    @document = document
    @variables = variables
  end

  # With operations; with `variables`, their values are kept.
  def apply(operations, variables: nil) = Manifest.new(GoPatch.apply(document, operations), variables)
  def groups = document.fetch('instance_groups')
  def group(name) = groups.find { |group| group['name'] == name }
  def job(group_name, name) = group(group_name)['jobs'].find { |job| job['name'] == name }
  def variables = @variables ||= Variables.new(document.fetch('variables'), GIVEN)
  def jobs = groups.flat_map { |group| group['jobs'].map { |job| [group, job] } }
  def ours = jobs.select { |_, job| job['release'] == 'portcullis' }

  # Faults that the director reports before it renders anything.
  def faults
    dangling = variables.dangling(document).map { |name| "variable #{name} is not defined" }
    dangling.empty? ? unknown_releases + repeated + link_faults : dangling
  end

  # Properties of a job after interpolation.
  def properties(job) = variables.interpolate(job.fetch('properties', {}))

  # All files of a job of ours on one VM; `instance` changes its fields.
  def render(group, job, index: 0, instance: {})
    Release.job(job['name']).render(
      properties: properties(job), links: links(group, job),
      instance: { 'name' => group['name'], 'index' => index, 'bootstrap' => index.zero?, 'ip' => '10.0.16.5',
                  'address' => address(group), 'deployment' => document['name'] }.merge(instance)
    )
  end

  # The links of a job by name; nil for an optional one without a provider.
  def links(group, job)
    consumes(job).to_h { |link| [link['name'], resolve(group, job, link)] }
  end

  private

  def unknown_releases
    known = document['releases'].map { |release| release['name'] }
    all = jobs.map(&:last) + document['addons'].flat_map { |addon| addon['jobs'] }
    (all.map { |job| job['release'] }.uniq - known).map { |name| "release #{name} is not in the manifest" }
  end

  def repeated
    { 'instance group' => groups, 'variable' => document['variables'], 'release' => document['releases'] }
      .merge(groups.to_h { |group| ["job of #{group['name']}", group['jobs']] })
      .flat_map do |kind, items|
        twice = items.map { |item| item['name'] }.tally.select { |_, count| count > 1 }.keys
        twice.map { |name| "#{kind} #{name} is there twice" }
      end
  end

  def link_faults
    jobs.flat_map do |group, job|
      names(group, job)
      links(group, job)
      []
    rescue LinkError => e
      [e.message]
    end
  end

  # Links in the manifest that the job does not have.
  def names(group, job)
    { 'provides' => provides(job), 'consumes' => consumes(job) }.each do |kind, known|
      unknown = job.fetch(kind, {}).keys - known.map { |link| link['name'] }
      raise LinkError, "#{label(group, job)} #{kind} no link #{unknown.first}" unless unknown.empty?
    end
  end

  # The rule of the director: with `from` the provider of that name, without it the only
  # provider of the type in the deployment.
  def resolve(group, job, link)
    choice = job.fetch('consumes', {}).fetch(link['name'], {})
    return nil if off?(choice) && link['optional']
    raise LinkError, "#{label(group, job)} needs the link #{link['name']}" if off?(choice)

    found = providers.select do |provider|
      provider.type == link['type'] && (!choice['from'] || provider.name == choice['from'])
    end
    return link_fields(found.first) if found.one?
    return nil if found.empty? && link['optional'] && !choice['from']

    raise LinkError, "#{label(group, job)} consumes #{link['name']} of type #{link['type']}, " \
                     "which has #{found.length} providers#{found.map { |p| " #{label(p.group, p.job)}" }.join(',')}"
  end

  def providers
    @providers ||= jobs.flat_map do |group, job|
      provides(job).filter_map do |link|
        choice = job.fetch('provides', {}).fetch(link['name'], {})
        Provider.new(choice['as'] || link['name'], link['type'], group, job, link['properties']) unless off?(choice)
      end
    end
  end

  # `nil` in a manifest is the text.
  def off?(choice) = choice.nil? || choice == 'nil'
  def label(group, job) = "job #{job['name']} of #{group['name']}"
  def address(group) = "q-s0.#{group['name']}.default.cf.bosh"

  def link_fields(provider)
    given = properties(provider.job)
    values = provider.properties.each_with_object({}) do |(name, default), result|
      keys = name.split('.')
      value = given.dig(*keys)
      inner = keys[0..-2].reduce(result) { |hash, key| hash[key] ||= {} }
      inner[keys.last] = value.nil? ? default : value
    end
    { 'address' => address(provider.group), 'properties' => values,
      'instances' => Array.new(provider.group['instances']) { |index| instance(provider, index) } }
  end

  def instance(provider, index)
    { 'name' => provider.group['name'], 'index' => index, 'id' => "id-#{index}", 'az' => 'z1',
      'bootstrap' => index.zero?, 'address' => "id-#{index}.#{provider.group['name']}.default.cf.bosh", 'properties' => {} }
  end

  # Links that a job provides, with the defaults of their properties.
  def provides(job)
    return genuine(job, 'provides') unless job['release'] == 'portcullis'

    ours = Release.job(job['name'])
    ours.spec.fetch('provides', []).map do |link|
      names = link.fetch('properties', [])
      link.merge('properties' => names.to_h { |name| [name, ours.declared.fetch(name)['default']] })
    end
  end

  def consumes(job)
    job['release'] == 'portcullis' ? Release.job(job['name']).spec.fetch('consumes', []) : genuine(job, 'consumes')
  end

  def genuine(job, kind)
    @genuine ||= YAML.safe_load_file("#{FIXTURES}/links.yml")
    @genuine.fetch(job['name'], {}).fetch(kind, [])
  end
end

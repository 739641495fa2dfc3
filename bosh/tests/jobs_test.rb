# frozen_string_literal: true

require 'minitest/autorun'
require_relative 'lib/checks'
require_relative 'lib/release'

# Checks that hold for every job: the form of its spec, the rendered files of every
# fixture, and the failing combinations in `bad.yml`.
class JobsTest < Minitest::Test
  include Checks

  SPEC_KEYS = %w[name description templates packages provides consumes properties].freeze
  PROPERTY_KEYS = %w[description default example].freeze

  Release.job_names.each do |name|
    define_method("test_spec_of_#{name}") { check_spec(Release.job(name)) }
    define_method("test_properties_of_#{name}") { check_properties(name) }
    define_method("test_bad_properties_of_#{name}") { check_bad(name) }
    Release.fixtures(name).each do |fixture|
      define_method("test_#{name}_#{fixture}") { check_rendered(name, fixture) }
    end
  end

  private

  def check_spec(job)
    spec = job.spec
    assert_equal File.basename(job.directory), spec['name']
    assert_empty spec.keys - SPEC_KEYS, 'unknown keys of the spec'
    refute_empty spec['description'].to_s
    assert_equal Dir.children("#{job.directory}/templates").sort, spec['templates'].keys.sort
    assert_equal spec['templates'].values.uniq, spec['templates'].values, 'two templates for one file'
    assert_empty spec['packages'] - Release.package_names
    (spec['provides'] || []).each { |link| check_link(job, link, %w[name type properties]) }
    (spec['consumes'] || []).each { |link| check_link(job, link, %w[name type optional]) }
    job.declared.each { |name, definition| check_property(name, definition) }
  end

  def check_link(job, link, keys)
    assert_empty link.keys - keys, "link #{link['name']}"
    assert_kind_of String, link['name']
    assert_kind_of String, link['type']
    (link['properties'] || []).each { |name| assert_includes job.declared.keys, name }
  end

  def check_property(name, definition)
    assert_match(/\A[a-z0-9_]+(\.[a-z0-9_]+)*\z/, name)
    assert_empty definition.keys - PROPERTY_KEYS, "keys of property #{name}"
    assert_kind_of String, definition['description'], "description of property #{name}"
    assert_match(/\A[A-Z].*\.\z/m, definition['description'].strip, "description of property #{name} is a sentence")
  end

  # Every property is looked up by some template in some fixture, or given to a link.
  def check_properties(name)
    job = Release.job(name)
    Release.fixtures(name).each { |fixture| Release.render(name, fixture, job: job) }
    provided = job.spec.fetch('provides', []).flat_map { |link| link.fetch('properties', []) }
    unused = job.declared.keys.reject do |property|
      (job.lookups + provided).any? { |used| property == used || property.start_with?("#{used}.") }
    end
    assert_empty unused, 'properties that no template uses'
  end

  def check_bad(name)
    path = "#{Release::FIXTURES}/#{name}/bad.yml"
    cases = YAML.safe_load_file(path)
    refute_empty cases
    cases.each do |bad|
      error = assert_raises(RuntimeError, bad['name']) do
        Release.render(name, bad.fetch('fixture', 'minimal'), bad.fetch('properties'))
      end
      assert_equal bad.fetch('error'), error.message, bad['name']
    end
  end

  def check_rendered(name, fixture)
    files = Release.render(name, fixture)
    fixture == 'disabled' ? check_disabled(name, files) : check_files(name, files)
  end
end
